import type { Command } from "commander";
import { MSN_PRETRAINING_OPTIONS, type MSNPretrainingOptions } from "../../training/index.ts";
import { DEVICES } from "../model_options.ts";
import { add_training_command, type DescribedOptions, described, pick } from "./option_file.ts";
import {
  data,
  encoder,
  loss,
  model,
  type OptionHelp,
  optimiser,
  output,
  training,
  VALUES_HELP,
  views,
} from "./option_help.ts";
import { type EncoderFlags, type PretrainFlags, pretrain } from "./run_pretrain.ts";
import {
  choice,
  type DescribedOption,
  flag,
  positive_integer,
  SHARED_FLAGS,
  SHARED_TRAINING_HELP,
  text,
} from "./shared_options.ts";

const ENCODER: Readonly<Record<keyof EncoderFlags, DescribedOption>> = {
  hidden_size: { rule: positive_integer, ...encoder("width of the encoder; default: 384") },
  num_hidden_layers: { rule: positive_integer, ...encoder("number of layers; default: 12") },
  num_attention_heads: {
    rule: positive_integer,
    ...encoder("attention heads of each layer, also for a .pth.tar; default: hidden_size / 64"),
  },
  intermediate_size: { rule: positive_integer, ...encoder("width of the MLPs; default: 4 * hidden_size") },
  image_size: { rule: positive_integer, ...encoder("height and width of images in pixels; default: 224") },
  patch_size: { rule: positive_integer, ...encoder("height and width of patches in pixels; default: 16") },
  num_channels: { rule: positive_integer, ...encoder("3 for colour images, 1 for grey ones; default: 3") },
};

const FLAGS: Readonly<Record<keyof PretrainFlags, DescribedOption>> = {
  train_dir: {
    rule: text,
    ...data("train on the images in this folder and those below it, without labels", "dir"),
  },
  export_branch: {
    rule: choice("target", "online"),
    ...output("the encoder to write after training; default: target"),
  },
  model_name_or_path: {
    rule: text,
    ...model(
      "continue from an encoder: a folder, hub repo id, base URL, or .pth.tar of the original code; default: a new encoder",
      "dir-or-repo",
    ),
  },
  ...ENCODER,
  image_processor_name: {
    rule: text,
    ...model(
      "load preprocessor_config.json from here; default: from the model, else ImageNet's mean and deviation",
      "dir-or-repo",
    ),
  },
  device: { rule: choice(...DEVICES), ...model("run on this device; default: wasm") },
  worker: {
    rule: flag,
    ...model(
      "run the engine in a separate thread, so that views are made meanwhile; default: true on the CPU",
    ),
  },
  continue_schedule: {
    rule: flag,
    ...training("count a .pth.tar's epochs in num_train_epochs, as the original code does; default: false"),
  },
  ...SHARED_FLAGS,
};

/** Help for each of the library's options; the types and README say more. */
const PRETRAINING_HELP: Readonly<Record<keyof MSNPretrainingOptions, OptionHelp>> = {
  output_dir: output("write checkpoints, the encoder and the report to this folder"),
  logging_steps: output("steps between log entries; default: 10"),
  usage_window: output("count the prototypes used in the last n steps; default: 50"),
  num_train_epochs: training("passes over the data; default: 100"),
  per_device_train_batch_size: training("images per step; default: 64"),
  encoder_batch_size: training("views that pass the encoder together; default: as many as memory holds"),
  dataloader_drop_last: training("skip an epoch's last batch if it is smaller; default: true"),
  data_seed: training("seed of the images' order and views; default: seed"),
  rand_views: views("random views per image, in addition to the target's; default: 1"),
  focal_views: views("focal views (small crops) per image; default: 10"),
  rand_size: views("height and width of random views in pixels; default: the model's image_size"),
  focal_size: views("height and width of focal views in pixels; default: 96/224 of rand_size"),
  rand_crop_scale: views("share of the image's area in a random view; default: 0.3,1"),
  focal_crop_scale: views("share of the image's area in a focal view; default: 0.05,0.3"),
  crop_ratio: views("aspect ratio of crops; default: 0.75,1.3333"),
  flip_prob: views("probability of mirroring; default: 0.5"),
  color_jitter_strength: views("factor of the colour changes below; default: 0.5"),
  color_jitter_prob: views("probability of colour changes; default: 0.8"),
  brightness: views("maximum change of brightness; default: 0.8"),
  contrast: views("maximum change of contrast; default: 0.8"),
  saturation: views("maximum change of saturation; default: 0.8"),
  hue: views("maximum change of hue, as a share of the colour circle; default: 0.2"),
  grayscale_prob: views("probability of conversion to grey; default: 0.2"),
  blur_prob: views("probability of blurring; default: 0.5"),
  blur_radius: views("standard deviation of the blur in pixels; default: 0.1,2"),
  patch_drop: views("share of patches dropped from random views; default: 0.15"),
  hidden_dim: loss("width of the projection head; default: 2048"),
  output_dim: loss("dimensions of projections and prototypes; default: 256"),
  num_proto: loss("number of prototypes; default: 1024"),
  temperature: loss("temperature of predictions; default: 0.1"),
  start_sharpen: loss("temperature that sharpens targets at the start; default: 0.25"),
  final_sharpen: loss("temperature that sharpens targets at the end; default: start_sharpen"),
  use_sinkhorn: loss("balance targets over prototypes; default: true"),
  sinkhorn_iterations: loss("Sinkhorn iterations; default: 3"),
  memax_weight: loss("weight of mean-entropy maximisation; default: 1"),
  ent_weight: loss("weight of the predictions' entropy; default: 0"),
  learning_rate: optimiser("maximum learning rate; default: 1e-3"),
  start_learning_rate: optimiser("learning rate at the start of the warmup; default: learning_rate / 5"),
  final_learning_rate: optimiser("learning rate that the cosine approaches; default: learning_rate / 1000"),
  warmup_epochs: optimiser("epochs of warmup; default: 15, or a tenth of the run if that is less"),
  weight_decay: optimiser("weight decay at the start; default: 0.04"),
  final_weight_decay: optimiser("weight decay at the end; default: 0.4"),
  ema_momentum: optimiser("momentum of the target encoder at the start; default: 0.996"),
  final_ema_momentum: optimiser("momentum of the target encoder at the end; default: 1"),
  schedule_stretch: optimiser("make schedules for a run this many times as long; default: 1.25"),
  max_grad_norm: optimiser("clip gradients of encoder and head to this norm, 0 for never; default: 3"),
  ...SHARED_TRAINING_HELP,
};

/** Every option by its name with underscores. */
const OPTIONS: DescribedOptions = new Map([
  ...described(MSN_PRETRAINING_OPTIONS, PRETRAINING_HELP),
  ...Object.entries(FLAGS),
]);

const HELP = `
--train-dir and --output-dir are required.${VALUES_HELP}
The command writes to output_dir: the encoder, train_results.json,
trainer_state.json, loss_curve.svg, prototype_use.svg and README.md. If
output_dir contains a checkpoint, the run resumes from it. Ctrl-C saves a
checkpoint after the current step and stops.`;

/** `vit-msn pretrain`, with an option for each of the library's pre-training options. */
export function add_pretrain(program: Command, signal: AbortSignal): void {
  add_training_command(program, {
    name: "pretrain",
    description: "pre-train an encoder on images without labels, by Masked Siamese Networks",
    help: HELP,
    options: OPTIONS,
    run: (options) => {
      const flags = pick(options, Object.keys(FLAGS)) as PretrainFlags;
      const encoder = pick(options, Object.keys(ENCODER)) as EncoderFlags;
      return pretrain(
        flags,
        encoder,
        pick(options, Object.keys(PRETRAINING_HELP)) as MSNPretrainingOptions,
        signal,
      );
    },
  });
}
