import { type Command, InvalidArgumentError, Option } from "commander";
import { FORMAT_NAMES, type FormatName, format_by_name } from "./formats.ts";
import type { JobOptions, OutputOptions } from "./job.ts";
import type { Identity } from "./journal.ts";
import { parse_shard, type Shard, WHOLE } from "./shard.ts";

/** What commander parsed of the options below. */
export interface BatchFlags {
  list?: string[];
  batchSize: number;
  shard?: Shard;
  output?: string;
  format?: FormatName;
  restart?: boolean;
  saveEvery: number;
  onError: "skip" | "stop";
  retries: number;
  timeout: number;
  header?: string[];
}

export function whole_number(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError("expected a whole number from 1 on.");
  return value;
}

function count(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError("expected a whole number from 0 on.");
  return Number(text);
}

export function seconds(text: string): number {
  const value = Number(text);
  if (!(value >= 0 && value <= 86_400)) throw new InvalidArgumentError("expected seconds, from 0 to 86400.");
  return value;
}

/** By hand rather than by commander, whose message would repeat the value, which may be a secret. */
function parse_headers(texts: readonly string[], command: Command): Record<string, string> {
  const headers = texts.map((text) => {
    const [, name, value] = /^([\w!#$%&'*+.^`|~-]+):\s*([\t -~\u0080-\u00ff]*)$/.exec(text.trim()) ?? [];
    if (name !== undefined && value !== undefined) return [name, value];
    return command.error('error: a --header must be "Name: value" in one line');
  });
  return Object.fromEntries(headers);
}

/** The arguments and options of a command that goes through many pictures. */
export function with_batch_options(command: Command): Command {
  return command
    .argument(
      "[images...]",
      'picture files, folders, globs, .tar or .tar.gz shards, http(s) URLs of either; "-" is one picture on standard input',
    )
    .option(
      "-l, --list <file>",
      'file with a path or URL a line, "-" for standard input; may be given again',
      (file: string, files: string[] = []) => [...files, file],
    )
    .option("-b, --batch-size <n>", "pictures computed together", whole_number, 1)
    .option("--shard <i/n>", "compute part i of n equal ones, i from 0 to n - 1", parse_shard)
    .option(
      "-o, --output <file>",
      "write a file, which the same command goes on with after an end of any kind",
    )
    .addOption(
      new Option("-f, --format <name>", "the output's format; default: by its name").choices(FORMAT_NAMES),
    )
    .option("--restart", "begin the output anew, whatever is there of it")
    .option("--save-every <s>", "seconds of work that a kill may cost", seconds, 2)
    .addOption(
      new Option("--on-error <what>", "what a picture that can't be read does to the run")
        .choices(["skip", "stop"])
        .default("skip"),
    )
    .option("--retries <n>", "tries after the first one of a URL that fails", count, 4)
    .option(
      "--timeout <s>",
      "seconds for a picture's URL to be read, or a shard's to send something",
      seconds,
      60,
    )
    .option(
      "--header <name: value>",
      "HTTP header to send to every host of an image's or shard's URL; may be given again",
      (text: string, texts: string[] = []) => [...texts, text],
    );
}

/** @throws CommanderError where the command line asks for nothing or for what doesn't go together. */
export function job_options(
  images: readonly string[],
  flags: BatchFlags,
  quiet: boolean,
  signal: AbortSignal,
  command: Command,
): JobOptions {
  const { list: lists = [] } = flags;
  if (images.length === 0 && lists.length === 0)
    command.error("error: no images: give files, folders, globs, shards or URLs, or a --list of them");
  if ([...images, ...lists].filter((source) => source === "-").length > 1)
    command.error('error: standard input can be read only once: give one "-"');
  return {
    sources: {
      paths: images,
      lists,
      patience: {
        retries: flags.retries,
        timeout_ms: Math.max(1, flags.timeout * 1000),
        headers: parse_headers(flags.header ?? [], command),
      },
    },
    shard: flags.shard ?? WHOLE,
    batch_size: flags.batchSize,
    stop_on_error: flags.onError === "stop",
    quiet,
    signal,
  };
}

/** What --output and its fellows ask for; undefined where results go to standard output. */
export function output_options(
  flags: BatchFlags,
  identity: Identity,
  command: Command,
): OutputOptions | undefined {
  const { output, restart = false, saveEvery } = flags;
  if (output === undefined) {
    if (flags.format ?? flags.restart) command.error("error: --format and --restart need an --output");
    return undefined;
  }
  const format = flags.format ?? format_by_name(output);
  if (format === undefined)
    return command.error(
      `error: the name ${output} tells no format; give --format ${FORMAT_NAMES.join("|")}`,
    );
  if (format === "npy" && identity.command === "classify")
    command.error("error: a .npy file has no place for labels; use .npz, .parquet or .jsonl");
  return { output, format, restart, save_every: saveEvery, identity };
}
