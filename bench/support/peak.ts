import { readFileSync } from "node:fs";
import binaryen from "binaryen";
import { repeat } from "./timing.ts";

/** The most that one core does with plain SIMD128, here and now. */
export interface Peak {
  gflops: number;
  /** Bytes read and written, both counted, inside the caches. */
  gb_per_s: number;
}

interface PeakKernels {
  multiply_add(iterations: number): number;
  copy(times: number): void;
}

const OPERATIONS_PER_ITERATION = 12 * 4 * 2;
const BYTES_PER_COPY = 2 << 20;

export async function measure_peak(): Promise<Peak> {
  const { multiply_add, copy } = await assemble("bench/support/peak.wat");
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

async function assemble(path: string): Promise<PeakKernels> {
  const module = binaryen.parseText(readFileSync(path, "utf8"));
  module.setFeatures(binaryen.Features.SIMD128);
  const { instance } = await WebAssembly.instantiate(new Uint8Array(module.emitBinary()));
  module.dispose();
  return instance.exports as unknown as PeakKernels;
}
