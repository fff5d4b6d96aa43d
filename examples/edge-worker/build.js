// Does what wrangler does by itself: bundles the worker, and writes the WebAssembly modules that it imports next to it.
import { build } from "esbuild";

await build({
  entryPoints: ["worker.js"],
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  conditions: ["workerd", "worker", "browser"],
  loader: { ".wasm": "copy" },
  assetNames: "[name]",
});
