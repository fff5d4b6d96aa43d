import { cp, readdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const vit_msn = fileURLToPath(new URL("dist/", import.meta.resolve("vit-msn/package.json")));

await build({
  entryPoints: ["main.js"],
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  splitting: true, // what is imported later stays apart
});
await cp("index.html", "dist/index.html");
await cp(`${vit_msn}models/fashion`, "dist/fashion", { recursive: true });
// esbuild leaves "new URL(file, import.meta.url)" as it is, so what the engine loads by it has to be next to the bundle.
for (const file of await readdir(vit_msn)) {
  if (/\.wasm$|^(thread|engine_worker)\.web\.js$|^vit_msn_webgpu\.js$/.test(file))
    await cp(vit_msn + file, `dist/${file}`);
}
