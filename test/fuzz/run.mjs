// Coverage-guided fuzzing of the parsers of untrusted bytes: npm run fuzz -- [TARGET...] [--seconds 60] [--seed N]
//
// A target (targets/*.ts) is bundled, instrumented by istanbul and run in a Worker on mutations of its corpus; inputs that
// reach new code join the corpus (.out/fuzz/corpus). An input that ends with anything but a VitMsnError, never ends, takes
// longer than HANG_SECONDS or needs more than MAX_MEMORY_MB is a finding: it is written to .out/fuzz/findings and the run fails.
// Once it is fixed, move it to test/fuzz/corpus/TARGET: test/node/fuzz_corpus.test.ts replays those on every run.
//
// Our own loop, because jazzer.js' binary needs a newer C library than Debian 12 has.
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";
import { build } from "esbuild";
import { createInstrumenter } from "istanbul-lib-instrument";
import { MAX_INPUT_BYTES } from "./limits.mjs";

/** Far above what any input needs on a slow and busy machine. */
const HANG_SECONDS = 60;
const MAX_MEMORY_MB = 3000;
const out = ".out/fuzz";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: "string", default: "60" }, seed: { type: "string" } },
});
const seconds = Number(values.seconds);
const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 32));
const known = (await readdir("test/fuzz/targets")).map((file) => file.replace(/\.ts$/, "")).sort();
const unknown = positionals.filter((name) => !known.includes(name));
if (unknown.length > 0 || !(seconds > 0) || !Number.isInteger(seed)) {
  console.error(`Usage: npm run fuzz -- [TARGET...] [--seconds N] [--seed N]\nTargets: ${known.join(", ")}`);
  process.exit(2);
}

await mkdir(join(out, "findings"), { recursive: true });
await bundle("test/fuzz/worker.ts", "worker");
const waiting = positionals.length > 0 ? [...positionals] : [...known];
let findings = 0;
const lanes = Array.from({ length: Math.min(availableParallelism(), waiting.length) }, async () => {
  for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
    await bundle_target(name);
    if (!(await fuzz(name))) findings++;
  }
});
await Promise.all(lanes);
process.exit(findings === 0 ? 0 : 1);

/** @param {string} entry @param {string} name @param {boolean} [write] */
async function bundle(entry, name, write = true) {
  const { outputFiles } = await build({
    entryPoints: [entry],
    outfile: join(out, `${name}.mjs`),
    bundle: true,
    format: "esm",
    platform: "node",
    packages: "external",
    write,
    logLevel: "warning",
  });
  return outputFiles?.[0]?.text ?? "";
}

/** @param {string} name */
async function bundle_target(name) {
  const entry = join(out, `${name}.entry.ts`);
  await writeFile(
    entry,
    `import * as target from "../../test/fuzz/targets/${name}.ts";
import { run_target } from "../../test/fuzz/target.ts";
globalThis.__fuzz_target__ = { run: (bytes) => run_target(target, bytes), dictionary: target.dictionary ?? [] };
`,
  );
  const code = await bundle(entry, name, false);
  const instrumenter = createInstrumenter({ esModules: true, produceSourceMap: false });
  await writeFile(join(out, `${name}.mjs`), instrumenter.instrumentSync(code, `${name}.mjs`));
}

/** Fuzzes one target. @param {string} name @returns {Promise<boolean>} whether nothing was found */
async function fuzz(name) {
  const counters = new Int32Array(new SharedArrayBuffer(8));
  const input = new Uint8Array(new SharedArrayBuffer(MAX_INPUT_BYTES));
  const found = join(out, "corpus", name);
  const seeds = join("test/fuzz/corpus", name);
  await mkdir(found, { recursive: true });
  const worker = new Worker(new URL(pathToFileURL(join(out, "worker.mjs"))), {
    workerData: {
      program: pathToFileURL(join(out, `${name}.mjs`)).href,
      seeds: (await readdir("test/fuzz/corpus")).includes(name) ? [seeds] : [],
      found,
      seconds,
      seed,
      counters: counters.buffer,
      input: input.buffer,
    },
    resourceLimits: { maxOldGenerationSizeMb: MAX_MEMORY_MB },
  });
  let status = { corpus: 0, reached: 0 };
  /** @type {string | undefined} */
  let finding;
  const watch = setInterval(() => {
    finding ??= stuck_or_large();
    if (finding !== undefined) void worker.terminate();
  }, 1000);
  const stuck_or_large = watcher(counters);
  worker.on("message", (message) => {
    if (message.kind === "crash") finding ??= message.error;
    else status = message;
  });
  worker.on("error", (error) => {
    finding ??= String(error);
  });
  const end = performance.now() + seconds * 1000;
  await new Promise((resolve) => worker.once("exit", resolve));
  clearInterval(watch);
  // Node ends a thread that waits for what can't happen.
  if (performance.now() < end) finding ??= "An input's promise never settled.";
  const runs = Atomics.load(counters, 0);
  console.log(
    `  ${name}: ${runs} inputs, ${status.corpus} in the corpus, ${status.reached} places reached, seed ${seed}`,
  );
  if (finding === undefined) return true;
  const path = join(out, "findings", `${name}-${Date.now()}`);
  await writeFile(path, input.slice(0, counters[1]));
  console.error(`  ${name}: FOUND ${path}\n${finding}`);
  return false;
}

/** @param {Int32Array} counters */
function watcher(counters) {
  let last = -1;
  let since = performance.now();
  return () => {
    const runs = Atomics.load(counters, 0);
    if (runs !== last) {
      last = runs;
      since = performance.now();
    }
    if (performance.now() - since > HANG_SECONDS * 1000)
      return `An input took longer than ${HANG_SECONDS} s.`;
    const { rss } = process.memoryUsage();
    // Both targets that run at a time share the process.
    if (rss > 2 * MAX_MEMORY_MB * 1e6) return `${Math.round(rss / 1e6)} MB of memory were in use.`;
    return undefined;
  };
}
