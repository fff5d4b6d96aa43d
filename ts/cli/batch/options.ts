import { type Command, InvalidArgumentError, Option } from "commander";
import { FORMAT_NAMES, type FormatName, format_by_name } from "./formats.ts";
import type { JobOptions, OutputOptions } from "./job.ts";
import type { Identity } from "./journal.ts";
import { parse_shard, type Shard, WHOLE } from "./shard.ts";

/** The values of the options below, as commander parses them. */
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

export function positive_integer(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError("expected a positive integer.");
  return value;
}

function integer(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError("expected an integer from 0 to 999999.");
  return Number(text);
}

export function seconds(text: string): number {
  const value = Number(text);
  if (!(value >= 0 && value <= 86_400)) throw new InvalidArgumentError("expected seconds from 0 to 86400.");
  return value;
}

/** Not parsed by commander, whose message would repeat the value, which may be a secret. */
function parse_headers(texts: readonly string[], command: Command): Record<string, string> {
  const headers = texts.map((text) => {
    const [, name, value] = /^([\w!#$%&'*+.^`|~-]+):\s*([\t -~\u0080-\u00ff]*)$/.exec(text.trim()) ?? [];
    if (name !== undefined && value !== undefined) return [name, value];
    return command.error('error: --header must be "Name: value" on one line');
  });
  return Object.fromEntries(headers);
}

/** Adds the arguments and options of a command that processes many images. */
export function with_batch_options(command: Command): Command {
  return with_output_options(with_input_options(command));
}

/** Adds the arguments and options of a command that reads many images. */
export function with_input_options(command: Command): Command {
  return command
    .argument(
      "[images...]",
      "image files, folders, globs, tar shards (.tar, .tar.gz, .tgz), zip archives, Parquet files that hold images, or " +
        "http(s) URLs of images and shards; " +
        '"-" reads one image from standard input',
    )
    .optionsGroup("Input:")
    .option(
      "-l, --list <file>",
      'read paths and URLs from a file, one a line; "-" reads standard input; repeatable',
      collect,
    )
    .option("-b, --batch-size <n>", "compute up to n images together", positive_integer, 1)
    .option("--shard <i/n>", "process only part i of n equal parts, with i from 0 to n - 1", parse_shard)
    .addOption(
      new Option("--on-error <action>", "skip an image that can't be read, or stop there")
        .choices(["skip", "stop"])
        .default("skip"),
    )
    .option("--retries <n>", "retry a URL that fails up to n times", integer, 4)
    .option(
      "--timeout <seconds>",
      "give up on an image's URL after this time, on a shard's when it sends nothing for this long",
      seconds,
      60,
    )
    .option(
      "--header <name: value>",
      "send an HTTP header with every request for an image or shard; repeatable",
      collect,
    );
}

function with_output_options(command: Command): Command {
  return command
    .optionsGroup("Output:")
    .option("-o, --output <file>", "write results to a file; if interrupted, the same command resumes")
    .addOption(
      new Option("-f, --format <name>", "format of --output; default: by its file extension").choices(
        FORMAT_NAMES,
      ),
    )
    .option("--restart", "discard an existing output and start again")
    .option(
      "--save-every <seconds>",
      "save the output this often, so that a killed run loses no more work than that",
      seconds,
      2,
    );
}

/** For an option that may be repeated. */
export function collect(value: string, values: string[] = []): string[] {
  return [...values, value];
}

/** @throws CommanderError if there are no images, or options contradict each other. */
export function job_options(
  images: readonly string[],
  flags: BatchFlags,
  quiet: boolean,
  signal: AbortSignal,
  command: Command,
): JobOptions {
  const { list: lists = [] } = flags;
  if (images.length === 0 && lists.length === 0)
    command.error("error: no images given: pass files, folders, globs, shards or URLs, or a --list of them");
  if ([...images, ...lists].filter((source) => source === "-").length > 1)
    command.error('error: standard input can be read only once: pass a single "-"');
  return {
    sources: {
      paths: images,
      lists,
      download: {
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

/** The settings of --output; undefined if results go to standard output. */
export function output_options(
  flags: BatchFlags,
  identity: Identity,
  command: Command,
): OutputOptions | undefined {
  const { output, restart = false, saveEvery } = flags;
  if (output === undefined) {
    if (flags.format ?? flags.restart) command.error("error: --format and --restart require --output");
    return undefined;
  }
  const format = flags.format ?? format_by_name(output);
  if (format === undefined)
    return command.error(
      `error: can't tell a format from the name ${output}; add --format ${FORMAT_NAMES.join("|")}`,
    );
  if (format === "npy" && identity.command === "classify")
    command.error("error: .npy files can't hold labels; use .npz, .csv, .parquet or .jsonl");
  return { output, format, restart, save_every: saveEvery, identity };
}
