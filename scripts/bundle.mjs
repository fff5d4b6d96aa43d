// Writes dist/, all but the type declarations: the bundles for Node and for browsers, the command line, the engine's
// WebAssembly, the default model, and the licences of what is bundled.
import { existsSync } from "node:fs";
import { chmod, cp, mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import { build } from "esbuild";
import { rolldown } from "rolldown";
import { third_party_licences } from "./licences.mjs";

/** @typedef {import("esbuild").BuildOptions} BuildOptions */
/** @typedef {import("rolldown").RolldownOptions} RolldownOptions */

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

/**
 * The files of a first load, each needing only those above it. One would be enough, except for apps that use a part: bundlers keep
 * whatever a file may import later.
 * @type {readonly [string, RegExp][]}
 */
const PARTS = [
  ["base", /\/ts\/(errors|is_a|on_demand|callable|dims|tensor|engine\/engine)\.ts$/],
  [
    "settings",
    /\/ts\/(env|checked_env|options|network\/(environment|address_space|proxy_settings)\.\w+)\.ts$/,
  ],
  ["network", /\/ts\/network\//],
  ["loading", /\/ts\/(?:files\/|dtypes\.|sleep\.|loading\/(?!checkpoint))/],
  ["image", /\/ts\/image\//],
  ["config", /\/ts\/model\/configuration_vit_msn\.ts$/],
  ["core", /./],
];

/** What the command line imports of the package. @type {Readonly<Record<string, string>>} */
const cli_imports = {
  "../index.ts": "./index.node.js",
  "../few_shot.ts": "./few_shot.node.js",
  "../similar.ts": "./similar.node.js",
  "../training/index.ts": "./training.node.js",
  "../files/index.ts": "./files.node.js",
  "../image/index.ts": "./images.node.js",
  "../training/tables/parquet.ts": "./parquet.node.js",
};

/** The glue of the WebGPU engine is a file of its own, which only its users download. @type {import("rolldown").Plugin} */
const webgpu_glue_stays_outside = {
  name: "webgpu-glue-stays-outside",
  resolveId: (id) =>
    id.endsWith("/webgpu/glue.js") ? { id: "./vit_msn_webgpu.js", external: true } : undefined,
};

/** Packages are its users' own, except for the reader of Parquet files. @type {RolldownOptions} */
const node = {
  platform: "node",
  external: (id) => !/^(?:[./#\0]|hyparquet)/.test(id) && !isAbsolute(id),
  plugins: [webgpu_glue_stays_outside],
};
/** @type {RolldownOptions} */
const browser = { platform: "browser", plugins: [webgpu_glue_stays_outside] };

/** The command line uses the package as any user does: it doesn't carry a second copy. @type {import("esbuild").Plugin} */
const package_is_external = {
  name: "package-is-external",
  setup({ onResolve }) {
    onResolve({ filter: /\/(?:index|few_shot|similar|tables\/parquet)\.ts$/ }, ({ path, importer }) => {
      const entry = /\bcli\b/.test(importer) ? cli_imports[path.replace(/^(\.\.\/)+/, "../")] : undefined;
      return entry === undefined ? undefined : { path: entry, external: true };
    });
  },
};

/**
 * Edge workers import the engine, of one level, as a compiled module: this is how they spell it.
 * @param {"relaxed" | "simd128"} level @returns {import("rolldown").Plugin}
 */
const wasm_is_a_module = (level) => ({
  name: "wasm-is-a-module",
  resolveId: (id) =>
    id.endsWith(".wasm") ? { id: `./vit_msn_${level}.wasm?module`, external: true } : undefined,
});

// Leftovers of an earlier build must not be packed; the type declarations come from tsc.
await mkdir("dist", { recursive: true });
const stale = (await readdir("dist")).filter((name) => name !== "types");
await Promise.all(stale.map((name) => rm(join("dist", name), { recursive: true })));
await mkdir("dist/models");

await build_entries("node", node);
await build_entries("web", browser);
// Service workers and edge workers can't import dynamically: one file each, with everything inside.
await build_one_file("static.web", "ts/static.ts", { ...browser, plugins: [] });
for (const [name, level] of /** @type {const} */ ([
  ["index.edge", "relaxed"],
  // "edge-light" also runs in Node on developers' machines, and Node 20 has no relaxed SIMD.
  ["index.edge_light", "simd128"],
])) {
  await build_one_file(name, "ts/static.ts", {
    ...browser,
    resolve: { conditionNames: ["workerd", "browser", "import", "default"] },
    plugins: [wasm_is_a_module(level)],
    // Some edge workers have no address; nothing can be found next to this file there.
    transform: { define: { "import.meta.url": '"file:///vit-msn/"' } },
  });
}
// The programs of the engine's threads and of its Worker.
for (const [folder, program] of [
  ["wasm", "thread"],
  ["worker", "engine_worker"],
]) {
  await build_one_file(`${program}.node`, `ts/engine/${folder}/${program}.node.ts`, node);
  await build_one_file(`${program}.web`, `ts/engine/${folder}/${program}.web.ts`, browser);
}
await build({
  ...common,
  entryPoints: { vit_msn_webgpu: "ts/engine/generated/webgpu/glue.js" },
  platform: "neutral",
  minifyIdentifiers: true,
});
const { metafile } = await build({
  ...common,
  metafile: true,
  entryPoints: { cli: "ts/cli/main.ts", prepare_worker: "ts/cli/serve/prepare_worker.ts" },
  platform: "node",
  plugins: [package_is_external],
  // commander and cli-progress are CommonJS: they ask for Node's modules by require.
  banner: {
    js: '#!/usr/bin/env node\nimport { createRequire } from "node:module";\nconst require = createRequire(import.meta.url);',
  },
});
await chmod("dist/cli.js", 0o755);
refuse_second_copy(Object.keys(metafile.inputs));
await writeFile("dist/THIRD_PARTY_LICENSES.txt", await third_party_licences(Object.keys(metafile.inputs)));

for (const level of [
  "simd128",
  "relaxed",
  "simd128_threads",
  "relaxed_threads",
  "relaxed_wide",
  "relaxed_wide_threads",
  "webgpu",
]) {
  const engine = `ts/engine/vit_msn_${level}.wasm`;
  if (existsSync(engine)) await cp(engine, `dist/vit_msn_${level}.wasm`);
  else console.warn(`dist/ lacks an engine: build it with "./build.sh engine ${level}".`);
}
// The default model was trained here; its images are those of the model that it replaced.
await cp("models/fashion_msn/classifier", "dist/models/fashion", { recursive: true });
await cp("models/fashion/pictures", "dist/models/fashion/pictures", { recursive: true });

/**
 * The package's entries: what the first one needs are a few files that all share, so that there is one copy of every class;
 * what few need is in separate files, imported when it is used. All are in one folder: the engine's files are found
 * from there. (esbuild would make a file for every set of files that is needed together: fifteen for a first load.)
 *
 * @param {"node" | "web"} runtime @param {RolldownOptions} options
 */
async function build_entries(runtime, options) {
  const input = {
    [`index.${runtime}`]: "ts/index.ts",
    [`few_shot.${runtime}`]: "ts/few_shot.ts",
    [`similar.${runtime}`]: "ts/similar.ts",
    [`training.${runtime}`]: "ts/training/index.ts",
    // Where imports come later, "static" is only another name; the command line reads images and writes files as the package does.
    ...(runtime === "node" && {
      "static.node": "ts/static.ts",
      "files.node": "ts/files/index.ts",
      "images.node": "ts/image/index.ts",
      "parquet.node": "ts/training/tables/parquet.ts",
    }),
  };
  const core = await static_imports(await rolldown({ ...options, input: "ts/index.ts" }));
  const bundle = await rolldown({ ...options, input });
  await bundle.write({
    ...output_of(runtime),
    chunkFileNames: ({ name }) => `${name.replace(/\.(node|web)$/, "")}.${runtime}.js`,
    codeSplitting: {
      groups: PARTS.map(([name, files], i) => ({
        name,
        priority: PARTS.length - i,
        test: (id) => core.has(id) && files.test(id),
      })),
    },
  });
}

/** The files that a bundle's entry can't do without. @param {import("rolldown").RolldownBuild} bundle */
async function static_imports(bundle) {
  const { output } = await bundle.generate();
  const chunks = new Map(output.flatMap((file) => (file.type === "chunk" ? [[file.fileName, file]] : [])));
  /** @type {Set<string>} */
  const modules = new Set();
  const add = (/** @type {import("rolldown").OutputChunk | undefined} */ chunk) => {
    for (const id of chunk?.moduleIds ?? []) modules.add(id);
    for (const file of chunk?.imports ?? []) add(chunks.get(file));
  };
  add([...chunks.values()].find(({ isEntry }) => isEntry));
  return modules;
}

/** @param {string} name @param {string} input @param {RolldownOptions} options */
async function build_one_file(name, input, options) {
  const bundle = await rolldown({ ...options, input: { [name]: input } });
  await bundle.write({ ...output_of(name.endsWith(".node") ? "node" : "web"), codeSplitting: false });
}

/** Browsers download it: short names inside. @param {"node" | "web"} runtime @returns {import("rolldown").OutputOptions} */
function output_of(runtime) {
  const minify = { compress: { target: "es2022" }, mangle: runtime === "web", codegen: true };
  return { dir: "dist", format: "es", minify, comments: false };
}

/** A copy of the package's classes in the command line would fail its `instanceof`. @param {string[]} inputs */
function refuse_second_copy(inputs) {
  const copies = inputs.filter((path) => path.startsWith("ts/") && !path.startsWith("ts/cli/"));
  if (copies.length > 0)
    throw new Error(
      `ts/cli must import from ${Object.keys(cli_imports).join(" and ")} alone, not from ${copies.join(", ")}.`,
    );
}
