// Does what wrangler does by itself: bundles the worker, and lays the WebAssembly modules that it imports beside it.
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
