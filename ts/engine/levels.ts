/** The engine's binaries: with plain or relaxed SIMD, for one thread or for several on a shared memory. */
export type Level = "simd128" | "relaxed" | "simd128+threads" | "relaxed+threads";

/** Which engine runs a model, and why no faster one does. */
export interface EngineInfo {
  /** What the engine's WebAssembly was built for. */
  readonly level: Level;
  /** Threads that compute. */
  readonly threads: number;
  /** One sentence for each reason why not a better level or as many threads as were asked for; else empty. */
  readonly reasons: readonly string[];
}

/**
 * A module that only runtimes with relaxed SIMD take:
 *
 *     (module (func (param v128) (result v128)
 *       (f32x4.relaxed_madd (local.get 0) (local.get 0) (local.get 0))))
 */
const RELAXED_SIMD = Uint8Array.of(
  ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00], // "\0asm", version 1
  ...[0x01, 0x06, 0x01, 0x60, 0x01, 0x7b, 0x01, 0x7b], // types: v128 -> v128
  ...[0x03, 0x02, 0x01, 0x00], // functions: one of type 0
  ...[0x0a, 0x0d, 0x01, 0x0b, 0x00], // code: one body without locals
  ...[0x20, 0x00, 0x20, 0x00, 0x20, 0x00, 0xfd, 0x85, 0x02, 0x0b], // local.get three times, relaxed_madd, end
);

const NO_RELAXED_SIMD =
  "Relaxed SIMD, with its fused multiply-add, is missing in this runtime (Node 21, Chrome 114 and Deno have it).";

/** The best level that runs here for so many threads, and why it is no better. */
export function choose_level(num_threads: number): { level: Level; reasons: string[] } {
  const has_relaxed = WebAssembly.validate(RELAXED_SIMD);
  const obstacle = obstacle_to_threads(num_threads);
  return {
    level: `${has_relaxed ? "relaxed" : "simd128"}${obstacle === undefined ? "+threads" : ""}`,
    reasons: [...(has_relaxed ? [] : [NO_RELAXED_SIMD]), ...(obstacle === undefined ? [] : [obstacle])],
  };
}

/** Why there can be no more threads than one here; undefined where there can. */
export function obstacle_to_threads(num_threads: number): string | undefined {
  if (num_threads === 1) return "One thread, as num_threads is 1.";
  if (typeof SharedArrayBuffer === "undefined" || globalThis.crossOriginIsolated === false) {
    return (
      "Threads need a page that is crossOriginIsolated: serve it with the headers " +
      "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp."
    );
  }
  if (!may_block()) return "Threads can't be waited for on a page's main thread: load the model in a Worker.";
  return undefined;
}

/** Whether this thread may sleep until another wakes it: everywhere but on a browser's main thread. */
function may_block(): boolean {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1); // 0 isn't 1: returns at once
    return true;
  } catch {
    return false;
  }
}
