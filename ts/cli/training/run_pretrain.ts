import { with_locked_folder } from "../../files/index.ts";
import {
  type ModelOptions,
  type PretrainedOptions,
  ViTImageProcessor,
  ViTMSNModel,
  VitMsnError,
} from "../../index.ts";
import {
  MSNPretrainer,
  MSNPretrainingArguments,
  type MSNPretrainingOptions,
  msn_encoder,
  OriginalMSNCheckpoint,
  UnlabelledImageFolder,
} from "../../training/index.ts";
import { DownloadBars } from "../progress_bars.ts";
import { write_pretraining_report } from "../report/pretraining_report.ts";
import {
  checkpoint_to_resume,
  interrupted,
  print_metrics,
  required,
  stop_on_signal,
} from "./interruptible_run.ts";
import { log_files } from "./log_file.ts";
import { PretrainingBars } from "./progress_bars.ts";
import { type SharedFlags, shared_pretrained_options } from "./shared_options.ts";

/** The default encoder is ViT-S. */
const HIDDEN_SIZE = 384;
const HEAD_DIM = 64;
const MLP_RATIO = 4;

/** The config of a new encoder, as far as the command line sets it. */
export interface EncoderFlags {
  hidden_size?: number;
  num_hidden_layers?: number;
  num_attention_heads?: number;
  intermediate_size?: number;
  image_size?: number;
  patch_size?: number;
  num_channels?: number;
}

/** The options of `vit-msn pretrain` in addition to those of the library. */
export interface PretrainFlags extends EncoderFlags, SharedFlags {
  train_dir?: string;
  model_name_or_path?: string;
  image_processor_name?: string;
  continue_schedule?: boolean;
  export_branch?: "target" | "online";
  device?: "wasm" | "webgpu" | "auto";
  worker?: boolean;
}

/** The encoder to start from, with its image processor and original checkpoint. */
interface Start {
  model: ViTMSNModel;
  image_processor?: ViTImageProcessor;
  original?: OriginalMSNCheckpoint;
}

/** `vit-msn pretrain`: pre-trains on a folder of images; writes the encoder, metrics, figures and a model card. @returns the exit code. */
export async function pretrain(
  flags: PretrainFlags,
  encoder: EncoderFlags,
  options: MSNPretrainingOptions,
  signal: AbortSignal,
): Promise<number> {
  const output_dir = required(options.output_dir as string | undefined, "output_dir", "pretrain");
  const folder = await UnlabelledImageFolder.open(required(flags.train_dir, "train_dir", "pretrain"));
  const { max_train_samples } = flags;
  const train_dataset =
    max_train_samples === undefined ? folder : folder.take(max_train_samples, options.seed);
  // Report invalid options before anything is loaded.
  new MSNPretrainingArguments(options);
  const run = { flags, encoder, options, train_dataset };
  return with_locked_folder(output_dir, signal, () => pretrain_into(output_dir, run, signal));
}

interface PretrainRun {
  flags: PretrainFlags;
  encoder: EncoderFlags;
  options: MSNPretrainingOptions;
  train_dataset: UnlabelledImageFolder;
}

/** Runs while the output folder is locked. */
async function pretrain_into(
  output_dir: string,
  { flags, encoder, options, train_dataset }: PretrainRun,
  signal: AbortSignal,
): Promise<number> {
  const resume = await checkpoint_to_resume(output_dir, flags);
  const logs = await log_files(output_dir, flags);
  const { model, image_processor, original } = await load_start(flags, encoder, options.seed ?? 0, signal);
  const stop = stop_on_signal(signal);
  const bars = new PretrainingBars(flags.quiet === true);
  try {
    const pretrainer = new MSNPretrainer({
      model,
      args: { ...original?.options, ...options },
      train_dataset,
      ...(image_processor && { image_processor }),
      ...(original && { initial_checkpoint: original }),
      ...(flags.continue_schedule !== undefined && { continue_schedule: flags.continue_schedule }),
      ...(flags.unreadable_images && { unreadable_images: flags.unreadable_images }),
      callbacks: [...logs, bars, stop.callback],
    });
    const { metrics } = await pretrainer.train(resume);
    bars.stop();
    if (stop.has_stopped()) return interrupted(pretrainer, signal);
    await pretrainer.save_model(output_dir, { branch: flags.export_branch ?? "target" });
    await pretrainer.save_metrics("train", metrics);
    await pretrainer.save_state();
    await write_pretraining_report(pretrainer, {
      base_model: flags.model_name_or_path,
      branch: flags.export_branch ?? "target",
      images: train_dataset.length,
      metrics,
    });
    print_metrics(metrics);
    return 0;
  } finally {
    bars.stop();
    stop.forget();
    await original?.dispose();
    await model.dispose();
  }
}

async function load_start(
  flags: PretrainFlags,
  encoder: EncoderFlags,
  seed: number,
  signal: AbortSignal,
): Promise<Start> {
  const { device = "wasm", worker = device === "wasm" } = flags;
  const bars = new DownloadBars(flags.quiet === true);
  const shared = shared_pretrained_options(flags, signal);
  const options: PretrainedOptions = { ...shared, device, worker, seed, progress_callback: bars.callback };
  try {
    const { model_name_or_path: from, image_processor_name: processor = from } = flags;
    if (from !== undefined && /\.(?:pth\.tar|pth|pt)$/i.test(from)) {
      const original = await OriginalMSNCheckpoint.open(from, { ...encoder }, options);
      const model = await msn_encoder(original.config, engine_options(options));
      return { model, original, ...(await load_processor(flags.image_processor_name, options)) };
    }
    if (from !== undefined) refuse_sizes(encoder);
    const model = await (from === undefined
      ? new_encoder(encoder, engine_options(options))
      : ViTMSNModel.from_pretrained(from, options));
    return { model, ...(await load_processor(processor, options)) };
  } finally {
    bars.stop();
  }
}

/** The part of the options that applies to a model that isn't loaded. */
function engine_options(options: PretrainedOptions): ModelOptions {
  const { attn_implementation, device, num_threads, worker, seed } = options;
  return { attn_implementation, device, num_threads, worker, seed };
}

async function load_processor(
  source: string | undefined,
  options: PretrainedOptions,
): Promise<Pick<Start, "image_processor">> {
  if (source === undefined) return {};
  return { image_processor: await ViTImageProcessor.from_pretrained(source, options) };
}

function new_encoder(encoder: EncoderFlags, options: ModelOptions): Promise<ViTMSNModel> {
  const { hidden_size = HIDDEN_SIZE } = encoder;
  const sizes = {
    hidden_size,
    num_attention_heads: hidden_size / HEAD_DIM,
    intermediate_size: MLP_RATIO * hidden_size,
    ...encoder,
  };
  return msn_encoder(sizes, options);
}

/** @throws VitMsnError INVALID_ARGUMENT for sizes of an encoder that is loaded. */
function refuse_sizes(encoder: EncoderFlags): void {
  const [name] = Object.keys(encoder);
  if (name === undefined) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `--${name.replaceAll("_", "-")} is for a new encoder; the one in model_name_or_path already has its sizes.`,
    { details: { argument: name } },
  );
}
