// Turns wasm-bindgen's glue into a factory. The glue keeps its instance in a variable of its module, which allows one
// instance in a process; each call of create_glue() has variables of its own, so each model gets its own engine.
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
  throw new Error("glue.mjs needs two folders: wasm-pack's and its own.");
await mkdir(to, { recursive: true });
const binary =
  wasm &&
  createHash("sha256")
    .update(await readFile(wasm))
    .digest("hex")
    .slice(0, 16);
await build({
  entryPoints: [join(from, "vit_msn_wasm.js")],
  outfile: join(to, "glue.js"),
  bundle: true,
  format: "iife",
  globalName: "glue",
  target: "es2022",
  banner: {
    js: `export default function create_glue(scope) {${names ? ` const { ${names} } = scope;` : ""}`,
  },
  footer: { js: `return glue;\n}${binary ? `\nexport const BINARY = "${binary}";` : ""}` },
  // The engine hands in the module itself; the glue must not look for a file of its own.
  define: { "import.meta.url": "undefined" },
  logLevel: "warning",
});
await writeFile(join(to, "vit_msn_wasm.d.ts"), await readFile(join(from, "vit_msn_wasm.d.ts")));
await writeFile(
  join(to, "glue.d.ts"),
  "/** A new copy of wasm-bindgen's glue, with an instance of its own. */\n" +
    `export default function create_glue(${names ? "scope: object" : ""}): typeof import("./vit_msn_wasm.js");\n` +
    (binary ? "/** Names the WebAssembly that this glue belongs to. */\nexport const BINARY: string;\n" : ""),
);
