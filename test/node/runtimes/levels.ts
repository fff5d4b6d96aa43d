// Run by Node on another architecture: every fixture on each engine for the CPU, a line of JSON for each case.
// Usage: levels.ts LEVEL…
import { readFile } from "node:fs/promises";
import process from "node:process";
import { FIXTURES, run_case, type Way } from "../../support/parity.ts";

const way: Way = { dtype: "float32", attn_implementation: "sdpa" };
for (const level of process.argv.slice(2)) {
  const file = new URL(`../../dist/vit_msn_${level.replaceAll(/[-+]/g, "_")}.wasm`, import.meta.url);
  const wasm = await WebAssembly.compile(await readFile(file));
  for (const num_threads of level.endsWith("+threads") ? [1, 2] : [1]) {
    for (const name of FIXTURES) {
      const options = { device: "wasm", wasm, num_threads } as const;
      const found = await run_case(name, way, options).catch((error: unknown) => ({ error: String(error) }));
      console.log(JSON.stringify({ name, level, num_threads, arch: process.arch, ...found }));
    }
  }
}
