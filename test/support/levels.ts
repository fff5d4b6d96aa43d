import { read_file } from "./files.ts";

/** The levels whose engine this runtime can compile: not every browser has relaxed SIMD. */
export async function runnable_levels<T extends string>(...levels: readonly T[]): Promise<T[]> {
  const runnable: T[] = [];
  for (const level of levels) {
    const bytes = await read_file(`dist/vit_msn_${level.replaceAll(/[-+]/g, "_")}.wasm`);
    if (WebAssembly.validate(bytes as Uint8Array<ArrayBuffer>)) runnable.push(level);
    else console.log(`Skipped on ${level}: this runtime can't compile it.`);
  }
  return runnable;
}
