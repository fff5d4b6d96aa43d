import { type Command, InvalidArgumentError } from "commander";
import { ImageIndex, type SimilarImage } from "../similar.ts";
import { type JobOptions, run_to_sink, type Task } from "./batch/job.ts";
import {
  type BatchFlags,
  collect,
  job_options,
  positive_integer,
  with_input_options,
} from "./batch/options.ts";
import type { Row } from "./batch/rows.ts";
import { print, RowSink } from "./batch/stdout.ts";
import { default_threads } from "./default_threads.ts";
import { load_extractor, pool_option } from "./embed.ts";
import { type ModelFlags, with_model_options } from "./model_options.ts";
import { json_for_stdout, visible } from "./terminal.ts";

interface SimilarFlags extends ModelFlags, BatchFlags {
  query?: string[];
  duplicates?: number | true;
  topK: number;
  pool: "cls" | "mean";
  json?: boolean;
}

const DEFAULT_THRESHOLD = 0.95;

/** `vit-msn similar`: the images that look most like others, and near duplicates. */
export function add_similar(program: Command, signal: AbortSignal): void {
  const command = program.command("similar");
  command
    .description("find the images that look most like others, or near duplicates among them")
    .optionsGroup("Search:")
    .option("--query <image>", "find the images most similar to this file or URL; repeatable", collect)
    .option(
      "--duplicates [cosine]",
      `find all pairs of images that are at least this similar (default: ${DEFAULT_THRESHOLD})`,
      cosine,
    )
    .option("-k, --top-k <n>", "return the n most similar images of each query", positive_integer, 5)
    .addOption(pool_option())
    .option("--json", "print one JSON object per line instead of text");
  with_model_options(with_input_options(command)).action(async (images: string[], flags: SimilarFlags) => {
    if (flags.query === undefined && flags.duplicates === undefined)
      command.error("error: nothing to find: add --query IMAGE or --duplicates");
    const options = job_options(images, flags, flags.quiet === true, signal, command);
    process.exitCode = await similar(flags, options);
  });
}

function cosine(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !(value >= -1 && value <= 1))
    throw new InvalidArgumentError("expected a number from -1 to 1.");
  return value;
}

async function similar(flags: SimilarFlags, options: JobOptions): Promise<number> {
  const { signal } = options;
  const task = await load_extractor(flags, flags, signal);
  const index = await ImageIndex.create({ num_threads: flags.numThreads ?? default_threads() });
  try {
    const added = new RowSink(({ image, values }) => index.add(image, values));
    await run_to_sink(task, added, options);
    const failures = added.failures + (await answer_queries(index, task, flags, options));
    await print_duplicates(index, flags, signal);
    return failures === 0 ? 0 : 1;
  } finally {
    await Promise.all([index.dispose(), task.dispose()]);
  }
}

/** @returns the number of queries that can't be read. */
async function answer_queries(
  index: ImageIndex,
  task: Task,
  { query = [], topK, json }: SimilarFlags,
  options: JobOptions,
): Promise<number> {
  if (query.length === 0) return 0;
  const queries: Row[] = [];
  const sink = new RowSink((row) => void queries.push(row));
  const sources = { ...options.sources, paths: query, lists: [] };
  await run_to_sink(task, sink, { ...options, sources, shard: { index: 0, count: 1 } });
  for (const { image, values } of queries) {
    const similar = await index.nearest(values, { k: topK, signal: options.signal });
    const line = json ? json_for_stdout(JSON.stringify({ image, similar })) : as_text(image, similar);
    await print(`${line}\n`);
  }
  return sink.failures;
}

function as_text(image: string, similar: readonly SimilarImage[]): string {
  const lines = similar.map(({ name, score }) => `  ${score.toFixed(4)}  ${visible(name)}`);
  return [visible(image), ...lines].join("\n");
}

async function print_duplicates(
  index: ImageIndex,
  { duplicates, json }: SimilarFlags,
  signal: AbortSignal,
): Promise<void> {
  if (duplicates === undefined) return;
  const threshold = duplicates === true ? DEFAULT_THRESHOLD : duplicates;
  for (const { names, score } of await index.duplicates({ threshold, signal })) {
    const line = json
      ? json_for_stdout(JSON.stringify({ images: names, score }))
      : `${score.toFixed(4)}\t${names.map(visible).join("\t")}`;
    await print(`${line}\n`);
  }
}
