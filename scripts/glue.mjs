// Turns wasm-bindgen's glue into a factory. The glue stores its instance in a variable of its module, which allows one
// instance in a process; each call of create_glue() has its own variables, so each model gets its own engine.
//
// Usage: node scripts/glue.mjs FOLDER_OF_WASM_PACK FOLDER_TO_WRITE [NAMES WASM]
// NAMES of globals, comma-separated: create_glue() takes an object of them, and the glue sees those instead of the real.
// WASM, the binary that the glue belongs to: BINARY names it, by its hash.
import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";

const [from, to, names, wasm] = process.argv.slice(2);
if (from === undefined || to === undefined)
  throw new Error("glue.mjs needs two folders: wasm-bindgen's and its own.");
await mkdir(to, { recursive: true });
const binary =
  wasm &&
  createHash("sha256")
    .update(await readFile(wasm))
    .digest("hex")
    .slice(0, 16);
const { outputFiles } = await build({
  // All but the default export, which fetches and starts the module: the engine passes a compiled one.
  stdin: { contents: 'export * from "./vit_msn_wasm.js";', resolveDir: from },
  bundle: true,
  format: "esm",
  target: "es2022",
  define: { "import.meta.url": "undefined" },
  write: false,
  logLevel: "warning",
});
const exports = /\nexport (\{[^}]*\});\n$/;
const code = outputFiles[0]?.text ?? "";
if (!exports.test(code)) throw new Error(`${from}: the glue doesn't end with one list of exports.`);
// The engine always passes a compiled module, which may come from another realm, where instanceof fails.
const compiles =
  /if \(!\(module instanceof WebAssembly\.Module\)\) \{\s*module = new WebAssembly\.Module\(module\);\s*\}/;
if (!compiles.test(code)) throw new Error(`${from}: initSync doesn't compile bytes as it used to.`);
const factory = code
  .replace(compiles, "")
  .replace(exports, (_, list) => `\nreturn ${list.replaceAll(/(\w+) as (\w+)/g, "$2: $1")};\n`);
await writeFile(
  join(to, "glue.js"),
  `export default function create_glue(scope) {${names ? ` const { ${names} } = scope;` : ""}\n${factory}}\n` +
    (binary ? `export const BINARY = "${binary}";\n` : ""),
);
await writeFile(join(to, "vit_msn_wasm.d.ts"), await readFile(join(from, "vit_msn_wasm.d.ts")));
await writeFile(
  join(to, "glue.d.ts"),
  "/** A new copy of wasm-bindgen's glue, with an instance of its own. */\n" +
    `export default function create_glue(${names ? "scope: object" : ""}): Omit<typeof import("./vit_msn_wasm.js"), "default">;\n` +
    (binary ? "/** Names the WebAssembly that this glue belongs to. */\nexport const BINARY: string;\n" : ""),
);
