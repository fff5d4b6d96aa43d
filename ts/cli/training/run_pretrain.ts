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
  PictureFolder,
} from "../../training/index.ts";
import { DownloadBars } from "../progress_bars.ts";
import { write_pretraining_report } from "../report/pretraining_report.ts";
import { checkpoint_to_resume, interrupted, required, stop_on_signal } from "./interruptible_run.ts";
import { PretrainingBars } from "./progress_bars.ts";

/** A fresh encoder is ViT-S. */
const HIDDEN_SIZE = 384;
const HEAD_DIM = 64;
const MLP_RATIO = 4;

/** The fields of a fresh encoder's config that the command line names. */
export interface EncoderFlags {
  hidden_size?: number;
  num_hidden_layers?: number;
  num_attention_heads?: number;
  intermediate_size?: number;
  image_size?: number;
  patch_size?: number;
  num_channels?: number;
}

/** What `vit-msn pretrain` takes besides the options of pre-training itself. */
export interface PretrainFlags extends EncoderFlags {
  train_dir?: string;
  max_train_samples?: number;
  unreadable_pictures?: "error" | "skip";
  model_name_or_path?: string;
  image_processor_name?: string;
  model_revision?: string;
  cache_dir?: string;
  local_files_only?: boolean;
  token?: string;
  continue_schedule?: boolean;
  export_branch?: "target" | "online";
  attn_implementation?: "sdpa" | "eager";
  device?: "wasm" | "webgpu" | "auto";
  num_threads?: number;
  worker?: boolean;
  resume_from_checkpoint?: string;
  overwrite_output_dir?: boolean;
  quiet?: boolean;
}

/** An encoder to begin with, and what comes with it. */
interface Start {
  model: ViTMSNModel;
  image_processor?: ViTImageProcessor;
  original?: OriginalMSNCheckpoint;
}

/** `vit-msn pretrain`: pre-trains on a folder of pictures and writes the encoder, metrics, figures and a model card. Gives the exit code. */
export async function pretrain(
  flags: PretrainFlags,
  encoder: EncoderFlags,
  options: MSNPretrainingOptions,
  signal: AbortSignal,
): Promise<number> {
  const output_dir = required(options.output_dir as string | undefined, "output_dir", "pretrain");
  const folder = await PictureFolder.open(required(flags.train_dir, "train_dir", "pretrain"));
  const { max_train_samples } = flags;
  const train_dataset =
    max_train_samples === undefined ? folder : folder.take(max_train_samples, options.seed);
  // Wrong options are told before anything is loaded.
  new MSNPretrainingArguments(options);
  const run = { flags, encoder, options, train_dataset };
  return with_locked_folder(output_dir, signal, () => pretrain_into(output_dir, run, signal));
}

interface PretrainRun {
  flags: PretrainFlags;
  encoder: EncoderFlags;
  options: MSNPretrainingOptions;
  train_dataset: PictureFolder;
}

/** The output folder is held until the report is written. */
async function pretrain_into(
  output_dir: string,
  { flags, encoder, options, train_dataset }: PretrainRun,
  signal: AbortSignal,
): Promise<number> {
  const resume = await checkpoint_to_resume(output_dir, flags);
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
      ...(flags.unreadable_pictures && { unreadable_pictures: flags.unreadable_pictures }),
      callbacks: [bars, stop.callback],
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
      pictures: train_dataset.length,
      metrics,
    });
    for (const [name, value] of Object.entries(metrics)) process.stdout.write(`${name} = ${value}\n`);
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
  const bars = new DownloadBars(flags.quiet === true);
  const fresh: ModelOptions = {
    attn_implementation: flags.attn_implementation,
    device: flags.device ?? "wasm",
    num_threads: flags.num_threads,
    worker: flags.worker ?? (flags.device ?? "wasm") === "wasm",
    seed,
  };
  const options: PretrainedOptions = {
    ...fresh,
    revision: flags.model_revision,
    cache_dir: flags.cache_dir,
    local_files_only: flags.local_files_only,
    token: flags.token,
    progress_callback: bars.callback,
    signal,
  };
  try {
    const { model_name_or_path: from, image_processor_name } = flags;
    const processor = async (source: string | undefined) =>
      source === undefined
        ? {}
        : { image_processor: await ViTImageProcessor.from_pretrained(source, options) };
    if (from === undefined)
      return { model: await fresh_encoder(encoder, fresh), ...(await processor(image_processor_name)) };
    if (/\.(?:pth\.tar|pth|pt)$/i.test(from)) {
      const original = await OriginalMSNCheckpoint.open(from, { ...encoder }, options);
      const model = await msn_encoder(original.config, fresh);
      return { model, original, ...(await processor(image_processor_name)) };
    }
    check_no_sizes(encoder);
    const model = await ViTMSNModel.from_pretrained(from, options);
    return { model, ...(await processor(image_processor_name ?? from)) };
  } finally {
    bars.stop();
  }
}

function fresh_encoder(encoder: EncoderFlags, options: ModelOptions): Promise<ViTMSNModel> {
  const { hidden_size = HIDDEN_SIZE } = encoder;
  const sizes = {
    hidden_size,
    num_attention_heads: hidden_size / HEAD_DIM,
    intermediate_size: MLP_RATIO * hidden_size,
    ...encoder,
  };
  return msn_encoder(sizes, options);
}

/** A model that is loaded has its sizes. */
function check_no_sizes(encoder: EncoderFlags): void {
  const [name] = Object.keys(encoder);
  if (name === undefined) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `--${name.replaceAll("_", "-")} is for a fresh encoder; that of model_name_or_path has its sizes already.`,
    { details: { argument: name } },
  );
}
