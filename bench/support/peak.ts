import { readFileSync } from "node:fs";
import { repeat } from "./timing.ts";
import { assemble } from "./wat.ts";

/** The most that one core does with plain SIMD128, here and now. */
export interface Peak {
  gflops: number;
  /** Bytes read and written, both counted, inside the caches. */
  gb_per_s: number;
}

interface PeakKernels extends WebAssembly.Exports {
  multiply_add(iterations: number): number;
  copy(times: number): void;
}

const OPERATIONS_PER_ITERATION = 12 * 4 * 2;
const BYTES_PER_COPY = 2 << 20;

export async function measure_peak(): Promise<Peak> {
  const { multiply_add, copy } = await assemble<PeakKernels>(readFileSync("bench/support/peak.wat", "utf8"));
  const iterations = 2_000_000;
  const copies = 200;
  const options = { min_ms: 500, min_rounds: 5 };
  const flop_ms = await repeat(() => multiply_add(iterations), options);
  const copy_ms = await repeat(() => copy(copies), options);
  return {
    gflops: (OPERATIONS_PER_ITERATION * iterations) / flop_ms / 1e6,
    gb_per_s: (BYTES_PER_COPY * copies) / copy_ms / 1e6,
  };
}
