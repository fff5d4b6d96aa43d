// Writes dist/, all but the type declarations: the bundles for Node and for browsers, the command line, the engine's
// WebAssembly, the default model, and the licences of what is bundled.
import { chmod, cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { build } from "esbuild";

/** @typedef {import("esbuild").BuildOptions} BuildOptions */

/** @type {BuildOptions} */
const common = {
  bundle: true,
  format: "esm",
  target: "es2022",
  outdir: "dist",
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  logLevel: "warning",
};

/** What the command line imports of the package. @type {Readonly<Record<string, string>>} */
const entries = { "../index.ts": "./index.node.js", "../training/index.ts": "./training.node.js" };

/** The command line uses the package as any user does: it doesn't carry a second copy. @type {import("esbuild").Plugin} */
const package_is_external = {
  name: "package-is-external",
  setup({ onResolve }) {
    onResolve({ filter: /\/index\.ts$/ }, ({ path, importer }) => {
      const entry = /\bcli\b/.test(importer) ? entries[path.replace(/^(\.\.\/)+/, "../")] : undefined;
      return entry === undefined ? undefined : { path: entry, external: true };
    });
  },
};

/** The glue of the WebGPU engine is a file of its own, which only its users download. @type {import("esbuild").Plugin} */
const webgpu_glue_is_external = {
  name: "webgpu-glue-is-external",
  setup({ onResolve }) {
    onResolve({ filter: /\/webgpu\/glue\.js$/ }, () => ({ path: "./vit_msn_webgpu.js", external: true }));
  },
};

// What an earlier build left must not be packed; the type declarations are tsc's.
await mkdir("dist", { recursive: true });
const stale = (await readdir("dist")).filter((name) => name !== "types");
await Promise.all(stale.map((name) => rm(join("dist", name), { recursive: true })));
await mkdir("dist/models");

// What both entries use is one file that each imports, so that there is one copy of every class. Nothing is imported later:
// service workers can't.
await build({
  ...common,
  entryPoints: { "index.node": "ts/index.ts", "training.node": "ts/training/index.ts" },
  splitting: true,
  chunkNames: "shared.node",
  platform: "node",
  packages: "external",
  plugins: [webgpu_glue_is_external],
});
await build({
  ...common,
  entryPoints: { "index.web": "ts/index.ts", "training.web": "ts/training/index.ts" },
  splitting: true,
  chunkNames: "shared.web",
  platform: "browser",
  plugins: [webgpu_glue_is_external],
  // Browsers download it: short names inside, but classes and functions still know their own.
  minifyIdentifiers: true,
  keepNames: true,
});
// The programs of the engine's threads, and of its own Worker.
await build({
  ...common,
  entryPoints: {
    "thread.node": "ts/engine/thread.node.ts",
    "engine_worker.node": "ts/engine/engine_worker.node.ts",
  },
  platform: "node",
  plugins: [webgpu_glue_is_external],
});
await build({
  ...common,
  entryPoints: {
    "thread.web": "ts/engine/thread.web.ts",
    "engine_worker.web": "ts/engine/engine_worker.web.ts",
  },
  platform: "browser",
  plugins: [webgpu_glue_is_external],
  minifyIdentifiers: true,
});
await build({
  ...common,
  entryPoints: { vit_msn_webgpu: "ts/engine/generated/webgpu/glue.js" },
  platform: "neutral",
  minifyIdentifiers: true,
});
const { metafile } = await build({
  ...common,
  metafile: true,
  entryPoints: { cli: "ts/cli/main.ts" },
  platform: "node",
  plugins: [package_is_external],
  // commander and cli-progress are CommonJS: they ask for Node's modules by require.
  banner: {
    js: '#!/usr/bin/env node\nimport { createRequire } from "node:module";\nconst require = createRequire(import.meta.url);',
  },
});
await chmod("dist/cli.js", 0o755);
refuse_second_copy(Object.keys(metafile.inputs));
await write_licences(Object.keys(metafile.inputs));

for (const level of ["simd128", "relaxed", "simd128_threads", "relaxed_threads", "webgpu"]) {
  await cp(`ts/engine/vit_msn_${level}.wasm`, `dist/vit_msn_${level}.wasm`);
}
await cp("models/fashion", "dist/models/fashion", {
  recursive: true,
  // The thousand pictures of the accuracy test aren't part of the model.
  filter: (path) => basename(path) !== "test1000.safetensors",
});

/** A copy of the package's classes in the command line would fail its `instanceof`. @param {string[]} inputs */
function refuse_second_copy(inputs) {
  const copies = inputs.filter((path) => path.startsWith("ts/") && !path.startsWith("ts/cli/"));
  if (copies.length > 0)
    throw new Error(
      `ts/cli must import from ${Object.keys(entries).join(" and ")} alone, not from ${copies.join(", ")}.`,
    );
}

/** @param {string[]} inputs */
async function write_licences(inputs) {
  const packages = new Set(
    inputs.flatMap((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []),
  );
  const texts = await Promise.all([...packages].sort().map(licence_of));
  await writeFile(
    "dist/THIRD_PARTY_LICENSES.txt",
    `dist/cli.js contains the packages below.\n\n${texts.join("\n\n")}`,
  );
}

/** @param {string} name */
async function licence_of(name) {
  const folder = join("node_modules", name);
  for (const file of ["LICENSE", "license", "LICENSE.md", "LICENSE.txt", "LICENSE-MIT.txt", "LICENSE-MIT"]) {
    const text = await readFile(join(folder, file), "utf8").catch(() => undefined);
    if (text !== undefined) return `---- ${name}\n\n${text.trim()}\n`;
  }
  throw new Error(`The bundled package ${name} has no licence file where one was looked for.`);
}
