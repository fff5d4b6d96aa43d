// Prints what a user downloads, and fails where a file outgrew its budget (bytes before compression) or a document gives
// another size. In documents, sizes are between markers, <!--size:facade-->127 kB<!--/size--> (for compressed ones with
// "gzip" instead of "size"); --write corrects them.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const budgets = [
  { files: ["dist/vit_msn_simd128.wasm"], what: "engine, CPU", budget: 320_000 },
  { files: ["dist/vit_msn_relaxed.wasm"], what: "the same, relaxed SIMD", budget: 320_000 },
  { files: ["dist/vit_msn_simd128_threads.wasm"], what: "the same, threads", budget: 320_000 },
  {
    name: "engine",
    files: ["dist/vit_msn_relaxed_threads.wasm"],
    what: "the same, relaxed SIMD and threads",
    budget: 320_000,
  },
  {
    name: "wide",
    // Loops for two vectors at a time, next to byte dot products. It is read from disk: nobody downloads it alone.
    files: ["dist/vit_msn_relaxed_wide.wasm"],
    what: "the same, 256-bit vectors in Node",
    budget: 335_000,
  },
  { files: ["dist/vit_msn_relaxed_wide_threads.wasm"], what: "the same, threads", budget: 335_000 },
  { name: "webgpu", files: ["dist/vit_msn_webgpu.wasm"], what: "engine, WebGPU", budget: 640_000 },
  { files: ["dist/vit_msn_webgpu.js"], what: "its glue", budget: 38_500 },
  { files: ["dist/thread.web.js"], what: "a thread's program, browsers", budget: 15_000 },
  { files: ["dist/engine_worker.web.js"], what: "an engine's Worker, browsers", budget: 47_000 },
  {
    name: "facade",
    files: ["index", "base", "settings", "network", "loading", "image", "config", "core"].map(
      (name) => `dist/${name}.web.js`,
    ),
    what: "facade: all that classifying on the CPU takes",
    budget: 130_000,
  },
  { files: ["dist/few_shot_image_classification.web.js"], what: "few-shot learning besides", budget: 31_000 },
  { files: ["dist/similar.web.js"], what: "an index of images besides", budget: 12_500 },
  { files: ["dist/pytorch_bin.web.js"], what: "reading pytorch_model.bin besides", budget: 19_000 },
  {
    files: ["dist/static.web.js"],
    what: "all of it but training in one file, for service workers",
    budget: 312_000,
  },
  { files: ["dist/index.edge.js"], what: "the same for edge workers, without WebGPU", budget: 243_000 },
  { files: ["dist/index.edge_light.js"], what: "the same with plain SIMD", budget: 243_000 },
  {
    name: "training",
    // With RandAugment and LoRA: a transform is called synchronously, so it can't be fetched on demand.
    files: ["training", "image_lists", "labelled_images"].map((name) => `dist/${name}.web.js`),
    what: "training besides, browsers",
    budget: 134_000,
  },
  // The reader of Parquet is most of it.
  {
    files: ["dist/table.web.js", "dist/tables.web.js"],
    what: "lists of images besides, on demand",
    budget: 86_000,
  },
];
/** How far a document's figure may deviate from the measured size. */
const TOLERANCE = 0.03;

const kilobytes = (/** @type {number} */ bytes) => `${(bytes / 1000).toFixed(1)} kB`;

/** By the name that documents use. @type {Map<string, number>} */
const sizes = new Map();
for (const { name, files, what, budget } of budgets) {
  const bytes = Buffer.concat(files.map((file) => readFileSync(file)));
  const compressed = gzipSync(bytes).length;
  if (name !== undefined) sizes.set(`size:${name}`, bytes.length).set(`gzip:${name}`, compressed);
  const over = bytes.length > budget;
  console.log(
    `  ${files.join(" + ")} (${what}): ${kilobytes(bytes.length)}, ${kilobytes(compressed)} gzipped, ` +
      `budget ${kilobytes(budget)}${over ? ": too large" : ""}`,
  );
  if (over) process.exitCode = 1;
}
for (const folder of [".", "docs/guides", "docs/design"]) {
  for (const file of readdirSync(folder)) if (file.endsWith(".md")) check_document(`${folder}/${file}`);
}

/** @param {string} file */
function check_document(file) {
  const text = readFileSync(file, "utf8");
  const corrected = text.replaceAll(
    /(<!--((?:size|gzip):\w+)-->)([\d,.]+)( kB<!--\/(?:size|gzip)-->)/g,
    (all, before, name, figure, after) => {
      const bytes = sizes.get(name);
      if (bytes === undefined) throw new Error(`${file}: there is no figure "${name}".`);
      const is_near = Math.abs(Number(figure) * 1000 - bytes) <= TOLERANCE * bytes;
      return is_near ? all : `${before}${Math.round(bytes / 1000)}${after}`;
    },
  );
  if (corrected === text) return;
  if (process.argv.includes("--write")) writeFileSync(file, corrected);
  else {
    console.error(`  ${file} gives sizes that are no longer true: run "node scripts/sizes.mjs --write".`);
    process.exitCode = 1;
  }
}
