import type { Level } from "../engine_info.ts";

/**
 * A module that compiles only with relaxed SIMD. `rest` shows whether the multiply-add is fused:
 *
 *     (module (func (export "rest") (param f32) (result f32)
 *       (f32x4.extract_lane 0
 *         (f32x4.relaxed_madd (f32x4.splat (local.get 0)) (f32x4.splat (local.get 0))
 *           (f32x4.splat (f32.neg (f32.mul (local.get 0) (local.get 0))))))))
 */
const RELAXED_SIMD = Uint8Array.of(
  ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00], // "\0asm", version 1
  ...[0x01, 0x06, 0x01, 0x60, 0x01, 0x7d, 0x01, 0x7d], // types: f32 -> f32
  ...[0x03, 0x02, 0x01, 0x00], // functions: one of type 0
  ...[0x07, 0x08, 0x01, 0x04, 0x72, 0x65, 0x73, 0x74, 0x00, 0x00], // exports: "rest" is function 0
  ...[0x0a, 0x1a, 0x01, 0x18, 0x00], // code: one body without locals
  ...[0x20, 0x00, 0xfd, 0x13, 0x20, 0x00, 0xfd, 0x13, 0x20, 0x00, 0x20, 0x00, 0x94, 0x8c, 0xfd, 0x13],
  ...[0xfd, 0x85, 0x02, 0xfd, 0x1f, 0x00, 0x0b], // relaxed_madd, extract_lane, end
);

const NO_RELAXED_SIMD =
  "Relaxed SIMD, with its fused multiply-add, is missing in this runtime (Node 21, Chrome 114, Deno, Firefox have it).";
const NOT_FUSED =
  "Relaxed SIMD's multiply-add isn't fused in this runtime (as in Bun on x86), which makes plain SIMD faster.";

/** The best level that runs here with this number of threads, and the reasons why not a better one. */
export function choose_level(num_threads: number): { level: Level; reasons: string[] } {
  const flaw = flaw_of_relaxed_simd();
  const obstacle = obstacle_to_threads(num_threads);
  return {
    level: `${flaw === undefined ? "relaxed" : "simd128"}${obstacle === undefined ? "+threads" : ""}`,
    reasons: [flaw, obstacle].filter((reason) => reason !== undefined),
  };
}

/** Why the kernels of relaxed SIMD, which assume a fused multiply-add, shouldn't run here; undefined if they should. */
function flaw_of_relaxed_simd(): string | undefined {
  if (!WebAssembly.validate(RELAXED_SIMD)) return NO_RELAXED_SIMD;
  try {
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(RELAXED_SIMD));
    // (1 + 2⁻¹²)² - round((1 + 2⁻¹²)²) is 2⁻²⁴, but 0 if the product is rounded before the sum.
    return (exports.rest as (x: number) => number)(1 + 2 ** -12) === 0 ? NOT_FUSED : undefined;
  } catch {
    return undefined; // code can't be compiled at run time here, so the caller passes the engine's module anyway
  }
}

/** Why there can't be more than one thread here; undefined if there can. */
export function obstacle_to_threads(num_threads: number): string | undefined {
  if (num_threads === 1) return "One thread, as num_threads is 1.";
  if (!has_shared_memory()) {
    if (globalThis.crossOriginIsolated) return "This browser lacks SharedArrayBuffer, which threads need.";
    return (
      "Threads need a page that is crossOriginIsolated: serve it with the headers " +
      "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp."
    );
  }
  if (!may_block()) return "A page's main thread can't wait for threads; a Worker can.";
  return undefined;
}

/** Whether the only obstacle to these threads is that this thread may not block. */
export function must_not_block(num_threads: number): boolean {
  return num_threads > 1 && has_shared_memory() && !may_block();
}

function has_shared_memory(): boolean {
  return typeof SharedArrayBuffer !== "undefined" && globalThis.crossOriginIsolated !== false;
}

/** Whether this thread may sleep until another wakes it, as everywhere except on a browser's main thread. */
function may_block(): boolean {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1); // 0 isn't 1: returns at once
    return true;
  } catch {
    return false;
  }
}
