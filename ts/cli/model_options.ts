import { type Command, Option } from "commander";
import { env, type PretrainedOptions, show_url, WEIGHT_DTYPES, type WeightDtype } from "../index.ts";
import { positive_integer } from "./batch/options.ts";
import { default_threads, THREADS_HELP } from "./default_threads.ts";
import { DownloadBars } from "./progress_bars.ts";

export const DEVICES = ["wasm", "webgpu", "auto"] as const satisfies readonly PretrainedOptions["device"][];
export const ATTENTIONS = [
  "sdpa",
  "eager",
] as const satisfies readonly PretrainedOptions["attn_implementation"][];
/** Types that weights are trained in. */
export const FLOAT_DTYPES = WEIGHT_DTYPES.filter((dtype) => dtype !== "int8");

export const WIDE_HELP = "use V8's experimental vectors of 256 bits where they work and are faster";

/** The values of the options below, as commander parses them. */
export interface ModelFlags {
  model?: string;
  revision: string;
  cacheDir?: string;
  localFilesOnly?: boolean;
  dtype: WeightDtype;
  attn: (typeof ATTENTIONS)[number];
  device: (typeof DEVICES)[number];
  numThreads?: number;
  wide: boolean;
  quiet?: boolean;
  /** Not an option: whether the engine runs in a separate thread. */
  worker?: boolean;
}

/** Adds the options of every command that loads a model. */
export function with_model_options(command: Command): Command {
  return command
    .optionsGroup("Model:")
    .option(
      "-m, --model <dir-or-repo>",
      "load this folder, hub repo id or base URL; default: the bundled model of clothes",
    )
    .option("--revision <name>", "use this branch, tag or commit of a hub repo", "main")
    .option("--cache-dir <dir>", "store downloads in this folder; default: the user's cache folder")
    .option("--local-files-only", "never access the network for a model")
    .addOption(
      new Option("--dtype <name>", "store weights in memory as this type")
        .choices(WEIGHT_DTYPES)
        .default("float32"),
    )
    .addOption(
      new Option("--attn <name>", "use this attention implementation").choices(ATTENTIONS).default("sdpa"),
    )
    .addOption(new Option("--device <name>", "run on this device").choices(DEVICES).default("wasm"))
    .option("-t, --num-threads <n>", `use n ${THREADS_HELP}`, positive_integer)
    .option("--wide", WIDE_HELP, true)
    .option("--no-wide", "never use V8's vectors of 256 bits")
    .optionsGroup("General options:")
    .option("-q, --quiet", "print no progress and no summary");
}

/** The options of from_pretrained for these flags. */
export function load_options(flags: ModelFlags, signal: AbortSignal): PretrainedOptions {
  env.wide_vectors = flags.wide;
  return {
    revision: flags.revision,
    cache_dir: flags.cacheDir,
    local_files_only: flags.localFilesOnly,
    dtype: flags.dtype,
    attn_implementation: flags.attn,
    device: flags.device,
    num_threads: flags.numThreads ?? default_threads(),
    worker: flags.worker,
    signal,
  };
}

/** Loads a pipeline, with progress bars on standard error. */
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

/** The options that determine a model's results. */
export function model_identity({ model, revision, dtype, attn }: ModelFlags): Record<string, unknown> {
  return { model: model === undefined ? "the bundled one" : show_url(model), revision, dtype, attn };
}
