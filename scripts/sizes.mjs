// Prints what a user downloads, and fails where a file outgrew its budget (bytes before compression).
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const budgets = [
  { files: ["dist/vit_msn_simd128.wasm"], what: "engine, CPU", budget: 310_000 },
  { files: ["dist/vit_msn_relaxed.wasm"], what: "the same, relaxed SIMD", budget: 310_000 },
  { files: ["dist/vit_msn_simd128_threads.wasm"], what: "the same, threads", budget: 310_000 },
  {
    files: ["dist/vit_msn_relaxed_threads.wasm"],
    what: "the same, relaxed SIMD and threads",
    budget: 310_000,
  },
  { files: ["dist/vit_msn_webgpu.wasm"], what: "engine, WebGPU", budget: 600_000 },
  { files: ["dist/vit_msn_webgpu.js"], what: "its glue", budget: 45_000 },
  { files: ["dist/thread.web.js"], what: "a thread's program, browsers", budget: 16_000 },
  { files: ["dist/engine_worker.web.js"], what: "an engine's Worker, browsers", budget: 49_000 },
  {
    files: ["index", "base", "settings", "loading", "image", "config", "core"].map(
      (name) => `dist/${name}.web.js`,
    ),
    what: "facade: all that classifying on the CPU takes",
    budget: 130_500,
  },
  { files: ["dist/few_shot_image_classification.web.js"], what: "few-shot learning besides", budget: 31_000 },
  { files: ["dist/pytorch_bin.web.js"], what: "reading pytorch_model.bin besides", budget: 19_000 },
  {
    files: ["dist/static.web.js"],
    what: "all of it but training in one file, for service workers",
    budget: 248_000,
  },
  { files: ["dist/index.edge.js"], what: "the same for edge workers, without WebGPU", budget: 193_000 },
  { files: ["dist/training.web.js"], what: "training besides, browsers", budget: 90_000 },
];
const kilobytes = (/** @type {number} */ bytes) => `${(bytes / 1000).toFixed(1)} kB`;

for (const { files, what, budget } of budgets) {
  const bytes = Buffer.concat(files.map((file) => readFileSync(file)));
  const over = bytes.length > budget;
  console.log(
    `  ${files.join(" + ")} (${what}): ${kilobytes(bytes.length)}, ${kilobytes(gzipSync(bytes).length)} gzipped, ` +
      `budget ${kilobytes(budget)}${over ? ": too large" : ""}`,
  );
  if (over) process.exitCode = 1;
}
