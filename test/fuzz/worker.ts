// Fuzzes one target in a Worker thread: its main thread (run.mjs) watches that every input ends.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import { Coverage } from "./coverage.ts";
import { MAX_INPUT_BYTES } from "./limits.mjs";
import { mutate, Random } from "./mutate.ts";
import type { LoadedTarget } from "./target.ts";

export interface FuzzJob {
  /** The instrumented program, which sets `globalThis.__fuzz_target__`. */
  program: string;
  /** Folders of initial inputs. */
  seeds: readonly string[];
  /** Where inputs that reached something new are written. */
  found: string;
  seconds: number;
  seed: number;
  /** Shared with the watching thread: [0] inputs so far, [1] length of the current one. */
  counters: SharedArrayBuffer;
  /** The current input. */
  input: SharedArrayBuffer;
}

export type FuzzMessage =
  | { kind: "status"; corpus: number; reached: number }
  | { kind: "crash"; error: string };

const job = workerData as FuzzJob;
const counters = new Int32Array(job.counters);
const input = new Uint8Array(job.input);
const send = (message: FuzzMessage) => parentPort?.postMessage(message);

async function main(): Promise<void> {
  const { target, coverage } = await load_target();
  const random = new Random(job.seed);
  const dictionary = target.dictionary.map((word) => Buffer.from(word as string));
  const corpus: Uint8Array[] = [];
  const add_if_new = async (bytes: Uint8Array) => {
    coverage.reset();
    await run(target, bytes);
    if (!coverage.is_new()) return;
    corpus.push(bytes);
    const name = createHash("sha256").update(bytes).digest("hex").slice(0, 16);
    writeFileSync(join(job.found, name), bytes);
    send({ kind: "status", corpus: corpus.length, reached: coverage.reached });
  };
  for (const bytes of [new Uint8Array(), ...read_folders([...job.seeds, job.found])]) await add_if_new(bytes);
  const end = performance.now() + job.seconds * 1000;
  while (performance.now() < end) {
    // Newer inputs reached what is least explored.
    const recent = random.below(2) === 0 ? Math.max(0, corpus.length - 32) : 0;
    const base = corpus[recent + random.below(corpus.length - recent)] as Uint8Array;
    await add_if_new(mutate(base, random, corpus, dictionary));
  }
  send({ kind: "status", corpus: corpus.length, reached: coverage.reached });
}

async function load_target() {
  await import(job.program);
  const loaded = globalThis as unknown as {
    __fuzz_target__: LoadedTarget;
    __coverage__: ConstructorParameters<typeof Coverage>[0];
  };
  return { target: loaded.__fuzz_target__, coverage: new Coverage(loaded.__coverage__) };
}

async function run(target: LoadedTarget, bytes: Uint8Array): Promise<void> {
  input.set(bytes);
  counters[1] = bytes.length;
  Atomics.add(counters, 0, 1);
  // A copy: a parser may retain or change what it was given.
  await target.run(bytes.slice());
}

function read_folders(folders: readonly string[]): Uint8Array[] {
  mkdirSync(job.found, { recursive: true });
  return folders.flatMap((folder) =>
    readdirSync(folder)
      .sort()
      .map((name) => new Uint8Array(readFileSync(join(folder, name))).subarray(0, MAX_INPUT_BYTES)),
  );
}

await main().catch((error: unknown) => {
  const { stack = String(error), cause } = error as Error;
  send({
    kind: "crash",
    error: cause === undefined ? stack : `${stack}\ncaused by ${(cause as Error).stack}`,
  });
});
// A target may hold a server open. In a Worker this ends the thread alone, after its messages are sent.
process.exit();
