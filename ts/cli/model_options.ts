import { type Command, Option } from "commander";
import type { PretrainedOptions } from "../index.ts";
import { whole_number } from "./batch/options.ts";
import { DownloadBars } from "./progress_bars.ts";

/** The options that commander parsed, common to all commands. */
export interface ModelFlags {
  model?: string;
  revision: string;
  cacheDir?: string;
  localFilesOnly?: boolean;
  dtype: "float32" | "float16" | "bfloat16" | "int8";
  attn: "sdpa" | "eager";
  device: "wasm" | "webgpu" | "auto";
  numThreads: number;
  quiet?: boolean;
  /** Not an option: whether the engine gets a thread of its own. */
  worker?: boolean;
}

/** The options of every command that loads a model. */
export function with_model_options(command: Command): Command {
  return command
    .option(
      "-m, --model <dir-or-repo>",
      "folder, hub repo id or base URL; default: the carried clothes model",
    )
    .option("--revision <name>", "branch, tag or commit of a hub repo", "main")
    .option("--cache-dir <dir>", "where downloads are kept")
    .option("--local-files-only", "never touch the network for a model")
    .addOption(
      new Option("--dtype <name>", "how weights are kept in memory")
        .choices(["float32", "float16", "bfloat16", "int8"])
        .default("float32"),
    )
    .addOption(
      new Option("--attn <name>", "attention implementation").choices(["sdpa", "eager"]).default("sdpa"),
    )
    .addOption(
      new Option("--device <name>", "where the model runs")
        .choices(["wasm", "webgpu", "auto"])
        .default("wasm"),
    )
    .option("-t, --num-threads <n>", "threads of the CPU engine", whole_number, 1)
    .option("-q, --quiet", "no progress, no summary");
}

/** The options of from_pretrained that a command line asks for. */
export function load_options(flags: ModelFlags, signal: AbortSignal): PretrainedOptions {
  return {
    revision: flags.revision,
    cache_dir: flags.cacheDir,
    local_files_only: flags.localFilesOnly,
    dtype: flags.dtype,
    attn_implementation: flags.attn,
    device: flags.device,
    num_threads: flags.numThreads,
    worker: flags.worker,
    signal,
  };
}

/** Loads a pipeline under progress bars on standard error. */
export async function load<P>(
  flags: ModelFlags,
  signal: AbortSignal,
  make: (options: PretrainedOptions) => Promise<P>,
): Promise<P> {
  const bars = new DownloadBars(flags.quiet === true);
  try {
    return await make({ ...load_options(flags, signal), progress_callback: bars.callback });
  } finally {
    bars.stop();
  }
}

/** Whether the model's engine still runs. */
export function is_alive(model: { memory(): unknown }): boolean {
  try {
    model.memory();
    return true;
  } catch {
    return false;
  }
}

/** What of these options decides a model's answers. */
export function model_identity({ model, revision, dtype, attn }: ModelFlags): Record<string, unknown> {
  return { model: model ?? "the carried one", revision, dtype, attn };
}
