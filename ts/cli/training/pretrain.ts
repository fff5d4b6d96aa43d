import type { Command } from "commander";
import { MSN_PRETRAINING_OPTIONS, type MSNPretrainingOptions } from "../../training/index.ts";
import {
  add_options,
  all_options,
  choice,
  count,
  type Described,
  type DescribedOptions,
  described,
  flag,
  pick,
  text,
} from "./option_file.ts";
import { type EncoderFlags, type PretrainFlags, pretrain } from "./run_pretrain.ts";

const ENCODER: Readonly<Record<keyof EncoderFlags, Described>> = {
  hidden_size: { rule: count(1), what: "of a fresh encoder; default 384" },
  num_hidden_layers: { rule: count(1), what: "of a fresh encoder; default 12" },
  num_attention_heads: {
    rule: count(1),
    what: "of a fresh encoder, or a .pth.tar; default hidden_size / 64",
  },
  intermediate_size: { rule: count(1), what: "of a fresh encoder; default 4 hidden_size" },
  image_size: { rule: count(1), what: "of a fresh encoder; default 224" },
  patch_size: { rule: count(1), what: "of a fresh encoder; default 16" },
  num_channels: { rule: count(1), what: "of a fresh encoder: 3, or 1 for grey pictures; default 3" },
};

const FLAGS: Readonly<Record<keyof PretrainFlags, Described>> = {
  train_dir: {
    rule: text,
    what: "the pictures to learn from, in folders of any depth; labels aren't needed",
  },
  max_train_samples: { rule: count(1), what: "learn from so many pictures at most" },
  unreadable_pictures: { rule: choice("error", "skip"), what: "a picture that can't be read; default error" },
  model_name_or_path: {
    rule: text,
    what: "folder, hub repo id or base URL of an encoder to go on from, or a .pth.tar of the original code; default: a fresh one",
  },
  ...ENCODER,
  image_processor_name: {
    rule: text,
    what: "where its preprocessor_config.json is; default: with the model, else ImageNet's mean and deviation",
  },
  model_revision: { rule: text, what: 'branch, tag or commit of a hub repo; default "main"' },
  cache_dir: { rule: text, what: "where downloads are kept" },
  local_files_only: { rule: flag, what: "never touch the network" },
  token: { rule: text, what: "hub access token; default the HF_TOKEN environment variable" },
  continue_schedule: {
    rule: flag,
    what: "count a .pth.tar's epochs among num_train_epochs, as the original does",
  },
  export_branch: {
    rule: choice("target", "online"),
    what: "the encoder to write in the end; default target",
  },
  attn_implementation: { rule: choice("sdpa", "eager"), what: "default sdpa" },
  device: { rule: choice("wasm", "webgpu", "auto"), what: "where it runs; default wasm" },
  num_threads: { rule: count(1), what: "threads of the CPU engine; default 1" },
  worker: {
    rule: flag,
    what: "the engine in a thread of its own, so that views are made while a step computes; default true on the CPU",
  },
  resume_from_checkpoint: { rule: text, what: "a checkpoint's folder, or its name in output_dir" },
  overwrite_output_dir: { rule: flag, what: "begin anew though output_dir isn't empty" },
  quiet: { rule: flag, what: "no progress" },
};

/** One line on each option of pre-training; README and the types say more. */
const PRETRAINING: Readonly<Record<keyof MSNPretrainingOptions, string>> = {
  output_dir: "where checkpoints, the encoder and the report go",
  num_train_epochs: "passes over the data; default 100",
  max_steps: "steps in all, instead of epochs",
  per_device_train_batch_size: "pictures of a step; default 64",
  dataloader_drop_last: "leave out an epoch's last batch where it is smaller; default true",
  rand_views: "random views to learn from, beside the target's; default 1",
  focal_views: "small crops; default 10",
  rand_size: "pixels of random views; default the model's image_size",
  focal_size: "pixels of focal views; default 96/224 of rand_size",
  rand_crop_scale: "share of a picture that a random view shows; default 0.3,1",
  focal_crop_scale: "the same of a focal view; default 0.05,0.3",
  crop_ratio: "width by height of what views show; default 0.75,1.3333",
  flip_prob: "of mirrored views; default 0.5",
  color_jitter_strength: "how strongly colours change; default 0.5",
  color_jitter_prob: "that colours change; default 0.8",
  brightness: "most that it changes, before color_jitter_strength; default 0.8",
  contrast: "the same; default 0.8",
  saturation: "the same; default 0.8",
  hue: "the same, as a share of the circle; default 0.2",
  grayscale_prob: "of grey views; default 0.2",
  blur_prob: "of blurred views; default 0.5",
  blur_radius: "in pixels of the view; default 0.1,2",
  patch_drop: "share of patches that random anchors lose; default 0.15",
  hidden_dim: "width of the projection head; default 2048",
  output_dim: "of the projection and prototypes; default 256",
  num_proto: "prototypes; default 1024",
  temperature: "of predictions; default 0.1",
  start_sharpen: "temperature that sharpens targets; default 0.25",
  final_sharpen: "the same at the end; default start_sharpen",
  use_sinkhorn: "balance targets over prototypes; default true",
  sinkhorn_iterations: "default 3",
  memax_weight: "of mean-entropy maximisation; default 1",
  ent_weight: "of the predictions' own entropy; default 0",
  learning_rate: "the highest; default 1e-3",
  start_learning_rate: "where the warm-up begins; default a fifth of it",
  final_learning_rate: "what the cosine falls towards; default a thousandth",
  warmup_epochs: "default 15, or a tenth of the run where that is less",
  weight_decay: "in the beginning; default 0.04",
  final_weight_decay: "at the schedule's end; default 0.4",
  ema_momentum: "what the target keeps of itself in the beginning; default 0.996",
  final_ema_momentum: "the same at the schedule's end; default 1",
  schedule_stretch: "schedules are made for a run so many times as long; default 1.25",
  adam_beta1: "default 0.9",
  adam_beta2: "default 0.999",
  adam_epsilon: "default 1e-8",
  max_grad_norm: "of encoder and head; 0: never clipped; default 3",
  gradient_checkpointing: "less memory, a third more time",
  save_strategy: "default steps",
  save_steps: "default 500",
  save_total_limit: "checkpoints to keep",
  logging_steps: "default 10",
  logging_first_step: "log the first step, too",
  usage_window: "steps that counts of used prototypes look back over; default 50",
  seed: "default 42",
  data_seed: "of the pictures' order and views; default seed",
};

/** Every option by its name with underscores. */
const OPTIONS: DescribedOptions = new Map([
  ...Object.entries(FLAGS),
  ...described(MSN_PRETRAINING_OPTIONS, PRETRAINING),
]);

/** `vit-msn pretrain`, with an option for each of pre-training's. */
export function add_pretrain(program: Command, signal: AbortSignal): void {
  const command = program
    .command("pretrain")
    .description("pre-train an encoder on pictures without labels, by Masked Siamese Networks")
    .addHelpText(
      "after",
      "\nNames may be written with underscores, as --train_dir. output_dir gets the encoder, train_results.json, trainer_state.json," +
        "\nloss_curve.svg, prototype_use.svg and README.md. Where output_dir holds a checkpoint, the run goes on from it. An" +
        "\ninterrupt saves one after the step that is under way.",
    );
  add_options(command, OPTIONS);
  command.action(async (file: string | undefined) => {
    const given = await all_options(command, file, OPTIONS);
    const flags = pick(given, Object.keys(FLAGS)) as PretrainFlags;
    const encoder = pick(given, Object.keys(ENCODER)) as EncoderFlags;
    const options = pick(given, Object.keys(PRETRAINING)) as MSNPretrainingOptions;
    process.exitCode = await pretrain(flags, encoder, options, signal);
  });
}
