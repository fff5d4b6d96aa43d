// Prints what a user downloads, and fails where a file outgrew its budget (bytes before compression).
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const budgets = [
  { files: ["dist/vit_msn_simd128.wasm"], what: "engine, CPU", budget: 300_000 },
  { files: ["dist/vit_msn_relaxed.wasm"], what: "the same, relaxed SIMD", budget: 300_000 },
  { files: ["dist/vit_msn_simd128_threads.wasm"], what: "the same, threads", budget: 300_000 },
  {
    files: ["dist/vit_msn_relaxed_threads.wasm"],
    what: "the same, relaxed SIMD and threads",
    budget: 300_000,
  },
  { files: ["dist/vit_msn_webgpu.wasm"], what: "engine, WebGPU", budget: 600_000 },
  { files: ["dist/vit_msn_webgpu.js"], what: "its glue", budget: 45_000 },
  { files: ["dist/thread.web.js"], what: "a thread's program, browsers", budget: 15_000 },
  { files: ["dist/engine_worker.web.js"], what: "an engine's Worker, browsers", budget: 38_000 },
  // The aim is 60 kB. Half of what there is reads untrusted files and says in sentences what is wrong with them; 28 kB are
  // few-shot learning, which pipeline() can't fetch on demand, since service workers import nothing later; 11 kB choose and
  // watch a GPU.
  { files: ["dist/index.web.js", "dist/shared.web.js"], what: "facade, browsers", budget: 192_000 },
  { files: ["dist/training.web.js"], what: "training besides, browsers", budget: 60_000 },
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
