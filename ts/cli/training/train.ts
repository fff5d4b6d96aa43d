import type { Command } from "commander";
import { TRAINING_OPTIONS, type TrainingOptions } from "../../training/index.ts";
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
import { type TrainFlags, train } from "./run_train.ts";
import { translate } from "./transformers_options.ts";

const FLAGS: Readonly<Record<keyof TrainFlags, Described>> = {
  train_dir: { rule: text, what: "the pictures to learn from: a folder for each class" },
  validation_dir: { rule: text, what: "the pictures to evaluate on, in folders of the same names" },
  train_val_split: {
    rule: { kind: "number", min: 0, max: 1 },
    what: "without validation_dir: the share of train_dir to evaluate on; default 0.15, 0 for none",
  },
  max_train_samples: { rule: count(1), what: "learn from so many pictures at most" },
  max_eval_samples: { rule: count(1), what: "evaluate on so many pictures at most" },
  empty_classes: { rule: choice("error", "skip"), what: "a class without pictures; default error" },
  unreadable_pictures: { rule: choice("error", "skip"), what: "a picture that can't be read; default error" },
  model_name_or_path: {
    rule: text,
    what: "folder, hub repo id or base URL to start from; default facebook/vit-msn-small",
  },
  image_processor_name: {
    rule: text,
    what: "where its preprocessor_config.json is; default: with the model",
  },
  model_revision: { rule: text, what: 'branch, tag or commit of a hub repo; default "main"' },
  cache_dir: { rule: text, what: "where downloads are kept" },
  local_files_only: { rule: flag, what: "never touch the network" },
  token: { rule: text, what: "hub access token; default the HF_TOKEN environment variable" },
  ignore_mismatched_sizes: { rule: flag, what: "a new classifier where the model's has other classes" },
  dtype: { rule: choice("float32", "float16", "bfloat16"), what: "of the model; default float32" },
  attn_implementation: { rule: choice("sdpa", "eager"), what: "default sdpa" },
  num_threads: { rule: count(1), what: "threads of the CPU engine; default 1" },
  do_train: { rule: flag, what: "default true" },
  do_eval: { rule: flag, what: "default true" },
  resume_from_checkpoint: { rule: text, what: "a checkpoint's folder, or its name in output_dir" },
  overwrite_output_dir: { rule: flag, what: "begin anew though output_dir isn't empty" },
  early_stopping_patience: { rule: count(1), what: "stop after so many evaluations without a gain" },
  quiet: { rule: flag, what: "no progress" },
};

/** One line on each option of training; README and the types say more. */
const TRAINING: Readonly<Record<keyof TrainingOptions, string>> = {
  output_dir: "where checkpoints, the model and the report go",
  num_train_epochs: "passes over the data; default 3",
  max_steps: "optimiser steps in all, instead of epochs",
  per_device_train_batch_size: "default 8",
  per_device_eval_batch_size: "default 8",
  gradient_accumulation_steps: "batches to one optimiser step; default 1",
  dataloader_drop_last: "leave out an epoch's last batch where it is smaller",
  learning_rate: "the highest; default 5e-5",
  lr_scheduler_type: "default linear",
  warmup_steps: "steps over which the learning rate rises, or their share; default 0",
  warmup_ratio: "their share of all steps; default 0",
  optim: "default adamw_torch",
  weight_decay: "default 0",
  adam_beta1: "default 0.9",
  adam_beta2: "default 0.999",
  adam_epsilon: "default 1e-8",
  momentum: "of sgd and lars; default 0.9",
  nesterov: "of sgd",
  lars_trust_coefficient: "default 0.001",
  max_grad_norm: "gradients are scaled down to this norm; 0: never; default 1",
  layer_decay: "each layer's learning rate is the one above's times this; default 1",
  label_smoothing_factor: "default 0",
  freeze_backbone: "train the classifier alone",
  freeze_layers: "leave the embeddings and so many layers as they are",
  freeze_keys: "leave parameters as they are whose key begins so",
  gradient_checkpointing: "less memory, a third more time",
  eval_strategy: 'default "no": once, in the end',
  eval_steps: "default logging_steps",
  eval_on_start: "evaluate before the first step, too",
  save_strategy: "default steps",
  save_steps: "default 500",
  save_total_limit: "checkpoints to keep",
  logging_strategy: "default steps",
  logging_steps: "default 500",
  logging_first_step: "log the first step, too",
  load_best_model_at_end: "end with the best checkpoint's weights",
  metric_for_best_model: 'default "loss"',
  greater_is_better: "default true, for a loss false",
  seed: "default 42",
  data_seed: "of the pictures' order and augmentation; default seed",
};

/** Every option by its name with underscores. */
const OPTIONS: DescribedOptions = new Map([
  ...Object.entries(FLAGS),
  ...described(TRAINING_OPTIONS, TRAINING),
]);

/** `vit-msn train`, with an option for each of training's. */
export function add_train(program: Command, signal: AbortSignal): void {
  const command = program
    .command("train")
    .description(
      "fine-tune a classifier on folders of pictures, as transformers' run_image_classification.py",
    )
    .addHelpText(
      "after",
      "\nNames may be written with underscores, as --train_dir. output_dir gets the model, train_results.json, eval_results.json," +
        "\nall_results.json, trainer_state.json, loss_curve.svg, confusion_matrix.svg and README.md. Where output_dir holds a" +
        "\ncheckpoint, training goes on from it. An interrupt saves one after the step that is under way.",
    );
  add_options(command, OPTIONS);
  command.action(async (file: string | undefined) => {
    const given = await all_options(command, file, OPTIONS, translate);
    const flags = pick(given, Object.keys(FLAGS)) as TrainFlags;
    process.exitCode = await train(flags, pick(given, Object.keys(TRAINING)) as TrainingOptions, signal);
  });
}
