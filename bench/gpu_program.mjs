// Run by bench/gpu.ts in Node or Deno: calls a function of gpu_page.js and prints its result as JSON.
// Usage: gpu_program.mjs NAME ARGUMENTS, these as JSON.
import process from "node:process";
import * as page from "./gpu_page.js";

const [name = "", args = "[]"] = process.argv.slice(2);
const functions = /** @type {Record<string, (...args: unknown[]) => Promise<unknown>>} */ (
  /** @type {unknown} */ (page)
);
console.log(JSON.stringify(await functions[name]?.(...JSON.parse(args))));
