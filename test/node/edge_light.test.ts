import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { EdgeRuntime } from "edge-runtime";
import { build } from "esbuild";
import { expect, test } from "vitest";

// The build for the export condition "edge-light", in the sandbox that Next.js runs edge routes in: another realm, whose
// code may not compile WebAssembly.

const root = fileURLToPath(new URL("../../", import.meta.url));

/** What a route's bundler makes of `?module`: the engine's file becomes a module that the host has compiled. */
async function bundle(contents: string): Promise<{ code: string; engines: string[] }> {
  const engines: string[] = [];
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: root },
    bundle: true,
    format: "iife",
    write: false,
    conditions: ["edge-light"],
    // By package.json's exports, not by this repository's paths.
    tsconfigRaw: "{}",
    plugins: [
      {
        name: "wasm-modules",
        setup({ onResolve, onLoad }) {
          onResolve({ filter: /\.wasm\?module$/ }, ({ path }) => {
            engines.push(path);
            return { path, namespace: "wasm" };
          });
          onLoad({ filter: /./, namespace: "wasm" }, () => ({
            contents: "export default globalThis.engine;",
          }));
        },
      },
    ],
  });
  return { code: outputFiles[0]?.text as string, engines };
}

test("a route under edge-light classifies, with an engine that Node 20 can compile", async () => {
  const { code, engines } = await bundle(`
    import { pipeline, RawImage } from "vit-msn";
    addEventListener("fetch", (event) => event.respondWith(answer()));
    async function answer() {
      const classify = await pipeline("image-classification", globalThis.model);
      const image = new RawImage(new Uint8Array(globalThis.png.pixels), 28, 28, 1);
      const [best] = await classify(image, { top_k: 1 });
      return Response.json({ best, level: classify.model.engine_info.level });
    }
  `);
  expect(engines).toEqual(["./vit_msn_simd128.wasm?module"]);
  const engine = new WebAssembly.Module(await readFile(join(root, "dist/vit_msn_simd128.wasm")));
  const folder = join(root, "dist/models/fashion");
  const names = ["config.json", "model.safetensors", "preprocessor_config.json"];
  const files = await Promise.all(
    names.map(async (name) => [name, new Uint8Array(await readFile(join(folder, name)))]),
  );
  const { RawImage } = await import("vit-msn");
  const boot = (await RawImage.read(join(folder, "pictures/9-ankle-boot.png"))).grayscale();
  const runtime = new EdgeRuntime({
    initialCode: code,
    extend: (context) =>
      Object.assign(context, {
        engine,
        model: Object.fromEntries(files),
        png: { pixels: [...boot.data] },
      }),
  });
  const response = await runtime.dispatchFetch("http://edge.example/");
  const answer = await response.json();
  expect(answer).toMatchObject({ best: { label: "Ankle boot" }, level: "simd128" });
  expect(answer.best.score).toBeGreaterThan(0.99);
});
