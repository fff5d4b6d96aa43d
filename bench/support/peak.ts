import { readFileSync } from "node:fs";
import { fastest } from "./timing.ts";
import { assemble } from "./wat.ts";

/** The most that one core does with 128-bit vectors, here and now. */
export interface Peak {
  /** float32 with plain SIMD128. */
  gflops: number;
  /** Billions of multiplications and additions a second with the dot product of int16. */
  int16_gops: number;
  /** The same with the dot product of bytes; undefined without relaxed SIMD. */
  byte_gops: number | undefined;
  /** Bytes read and written, both counted, inside the caches. */
  gb_per_s: number;
}

interface PeakKernels extends WebAssembly.Exports {
  multiply_add(iterations: number): number;
  copy(times: number): void;
}

const CHAINS = 12;
const OPERATIONS_PER_ITERATION = CHAINS * 4 * 2;
const BYTES_PER_COPY = 2 << 20;

/** Products of 8 pairs of int16, and one more instruction to add them. Added to a separate sum, or V8 would compute it once. */
const INT16_DOT = (sum: string) =>
  `(i32x4.add (i32x4.dot_i16x8_s (local.get ${sum}) (local.get $b)) (local.get ${sum}))`;
/** Products of 16 pairs of bytes, and their sums. */
const BYTE_DOT = (sum: string) =>
  `(i32x4.relaxed_dot_i8x16_i7x16_add_s (local.get $a) (local.get $b) (local.get ${sum}))`;

/** Independent chains of a dot product, as `multiply_add` of peak.wat has for float32. */
function dot_chains(dot: (sum: string) => string): string {
  const sums = Array.from({ length: CHAINS }, (_, i) => `$${i}`);
  const total = sums.map((sum) => `(local.get ${sum})`).reduce((a, b) => `(i32x4.add ${a} ${b})`);
  return `(module (func (export "dot") (param $iterations i32) (result i32)
    (local $a v128) (local $b v128) ${sums.map((sum) => `(local ${sum} v128)`).join(" ")}
    (local.set $a (i32x4.splat (local.get $iterations)))
    (local.set $b (i8x16.splat (i32.const 3)))
    (loop $again
      ${sums.map((sum) => `(local.set ${sum} ${dot(sum)})`).join("\n")}
      (br_if $again (local.tee $iterations (i32.sub (local.get $iterations) (i32.const 1)))))
    (i32x4.extract_lane 0 ${total})))`;
}

/** Multiplications and additions a second, in billions, of a dot product of that many pairs. */
async function measure_dot(dot: (sum: string) => string, pairs: number): Promise<number> {
  const { dot: run } = await assemble<{ dot(iterations: number): number }>(dot_chains(dot));
  const iterations = 500_000;
  const ms = await fastest(() => run(iterations), MEASURED);
  return (CHAINS * pairs * 2 * iterations) / ms / 1e6;
}

const MEASURED = { min_ms: 500, min_rounds: 5 };

export async function measure_peak(): Promise<Peak> {
  const { multiply_add, copy } = await assemble<PeakKernels>(readFileSync("bench/support/peak.wat", "utf8"));
  const iterations = 500_000;
  const copies = 200;
  const flop_ms = await fastest(() => multiply_add(iterations), MEASURED);
  const copy_ms = await fastest(() => copy(copies), MEASURED);
  return {
    gflops: (OPERATIONS_PER_ITERATION * iterations) / flop_ms / 1e6,
    int16_gops: await measure_dot(INT16_DOT, 8),
    byte_gops: await measure_dot(BYTE_DOT, 16).catch(() => undefined),
    gb_per_s: (BYTES_PER_COPY * copies) / copy_ms / 1e6,
  };
}
