import type { Command } from "commander";
import { TRAINING_OPTIONS, type TrainingOptions } from "../../training/index.ts";
import { DEVICES, FLOAT_DTYPES } from "../model_options.ts";
import { add_training_command, type DescribedOptions, described, pick } from "./option_file.ts";
import {
  data,
  evaluation,
  model,
  type OptionHelp,
  optimiser,
  output,
  training,
  VALUES_HELP,
} from "./option_help.ts";
import { type TrainFlags, train } from "./run_train.ts";
import {
  choice,
  type DescribedOption,
  flag,
  positive_integer,
  SHARED_FLAGS,
  SHARED_TRAINING_HELP,
  text,
  texts,
} from "./shared_options.ts";
import { translate } from "./transformers_options.ts";

const FLAGS: Readonly<Record<keyof TrainFlags, DescribedOption>> = {
  train_dir: {
    rule: text,
    ...data("train on the images in this folder: a folder for each class, metadata.csv, or lists", "dir"),
  },
  train_file: {
    rule: texts,
    ...data("train on the images that these list: .csv, .tsv, .jsonl, .parquet, or shards: .tar", "file..."),
  },
  validation_dir: {
    rule: text,
    ...data("evaluate on the images in this folder, with the same classes", "dir"),
  },
  validation_file: { rule: texts, ...data("evaluate on the images that these list", "file...") },
  image_dir: {
    rule: text,
    ...data("paths in lists are relative to this folder; default: each list's own", "dir"),
  },
  image_column_name: {
    rule: text,
    ...data("column of images in lists, or ending of their names in shards; default: image", "name"),
  },
  label_column_name: {
    rule: text,
    ...data("column of labels in lists, or ending of their names in shards; default: label, or cls", "name"),
  },
  label_separator: {
    rule: text,
    ...data("what separates several labels in one cell; default: a cell is one label", "text"),
  },
  problem_type: {
    rule: choice("single_label_classification", "multi_label_classification", "regression"),
    ...data("what labels in lists are; default: by their values", "name"),
  },
  train_val_split: {
    rule: { kind: "number", min: 0, max: 1 },
    ...data(
      "without validation data: evaluate on this share of the training data, 0 for none; default: 0.15",
    ),
  },
  stratified: {
    rule: flag,
    ...data("without validation data: evaluate on the same share of each class; default: false"),
  },
  max_eval_samples: { rule: positive_integer, ...data("evaluate on up to n images; default: all") },
  empty_classes: {
    rule: choice("error", "skip"),
    ...data("stop at a class without images, or skip it; default: error", "action"),
  },
  model_name_or_path: {
    rule: text,
    ...model("start from a folder, hub repo id or base URL; default: facebook/vit-msn-small", "dir-or-repo"),
  },
  image_processor_name: {
    rule: text,
    ...model("load preprocessor_config.json from here; default: from the model", "dir-or-repo"),
  },
  ignore_mismatched_sizes: {
    rule: flag,
    ...model("replace a classifier that has other classes by a new one; default: false"),
  },
  dtype: { rule: choice(...FLOAT_DTYPES), ...model("type of the weights; default: float32") },
  device: { rule: choice(...DEVICES), ...model("run on this device; default: auto") },
  rand_augment: {
    rule: { kind: "number", min: 0, max: 10 },
    ...training("change images by RandAugment of this magnitude, usually 9; default: 0, never"),
  },
  do_train: { rule: flag, ...training("train, rather than only evaluate; default: true") },
  do_eval: { rule: flag, ...evaluation("evaluate after training; default: true") },
  early_stopping_patience: {
    rule: positive_integer,
    ...evaluation("stop after n evaluations without an improvement; default: never"),
  },
  ...SHARED_FLAGS,
};

/** Help for each of the library's options; the types and README say more. */
const TRAINING_HELP: Readonly<Record<keyof TrainingOptions, OptionHelp>> = {
  output_dir: output("write checkpoints, the model and the report to this folder"),
  logging_strategy: output("when to log; default: steps", "when"),
  logging_steps: output("steps between log entries; default: 500"),
  load_best_model_at_end: output("finish with the weights of the best checkpoint; default: false"),
  metric_for_best_model: output("metric that the best checkpoint is chosen by; default: loss", "name"),
  greater_is_better: output("whether a larger metric is better; default: true, for a loss false"),
  num_train_epochs: training("passes over the data; default: 3"),
  per_device_train_batch_size: training("images per batch; default: 8"),
  gradient_accumulation_steps: training("batches per optimiser step; default: 1"),
  train_sampling_strategy: training(
    "random, or class_balanced: draw all classes equally often; default: random",
    "how",
  ),
  dataloader_drop_last: training("skip an epoch's last batch if it is smaller; default: false"),
  label_smoothing_factor: training("label smoothing of the cross-entropy; default: 0"),
  class_weights: training("weight of each class in the cross-entropy; default: 1 for all"),
  mixup_alpha: training("mix pairs of images with a share from Beta(x, x), 0 for never; default: 0"),
  cutmix_alpha: training("paste a box of one image into another, as mixup_alpha; default: 0"),
  mixup_prob: training("probability that a batch is mixed; default: 1"),
  mixup_switch_prob: training("probability of CutMix where Mixup is on, too; default: 0.5"),
  random_erasing_prob: training("probability that a box of an image becomes noise; default: 0"),
  drop_path_rate: training("probability that an image skips the last layer's branches; default: 0"),
  ema_decay: training("decay of a moving average of the weights, which is the result; default: 0, none"),
  lora_r: training("train low-rank adapters of this rank (LoRA) and the classifier alone; default: 0, none"),
  lora_alpha: training("multiply adapters by this / lora_r; default: 8"),
  lora_dropout: training("dropout before the adapters; default: 0"),
  lora_target_modules: training("layers with adapters, as in peft; default: query value", "name..."),
  freeze_backbone: training("train the classifier only; default: false"),
  freeze_layers: training("freeze the embeddings and the first n layers; default: 0"),
  freeze_keys: training("freeze parameters whose keys begin with one of these; default: none", "prefix..."),
  data_seed: training("seed of the images' order and augmentation; default: seed"),
  optim: optimiser("optimiser; default: adamw_torch"),
  learning_rate: optimiser("maximum learning rate; default: 5e-5"),
  lr_scheduler_type: optimiser("learning rate schedule; default: linear"),
  warmup_steps: optimiser("steps of linear warmup, or below 1 their share of all steps; default: 0"),
  warmup_ratio: optimiser("share of all steps for linear warmup, if warmup_steps is 0; default: 0"),
  weight_decay: optimiser("weight decay of all parameters but biases and norms; default: 0"),
  momentum: optimiser("momentum of sgd and lars; default: 0.9"),
  nesterov: optimiser("use Nesterov momentum with sgd; default: false"),
  lars_trust_coefficient: optimiser("trust coefficient of lars; default: 0.001"),
  max_grad_norm: optimiser("clip gradients to this norm, 0 for never; default: 1"),
  layer_decay: optimiser("factor of the learning rate from each layer to the one below; default: 1"),
  per_device_eval_batch_size: evaluation("images per batch; default: 8"),
  eval_strategy: evaluation("when to evaluate; default: no, which means once after training", "when"),
  eval_steps: evaluation("steps between evaluations; default: logging_steps"),
  test_time_augmentation: evaluation("none, or flip: average over mirror images; default: none", "how"),
  eval_on_start: evaluation("also evaluate before the first step; default: false"),
  ...SHARED_TRAINING_HELP,
};

/** Every option by its name with underscores. */
const OPTIONS: DescribedOptions = new Map([
  ...described(TRAINING_OPTIONS, TRAINING_HELP),
  ...Object.entries(FLAGS),
]);

const HELP = `
--train-dir or --train-file, and --output-dir are required; to evaluate only
(--do-train false), --validation-dir or --validation-file suffices. Splits are
recognised in names: train/, validation/, test-00000-of-00002.parquet.${VALUES_HELP}
The command writes to output_dir: the model, train_results.json,
eval_results.json, all_results.json, trainer_state.json, loss_curve.svg,
confusion_matrix.svg (for one class for each image) and README.md. If output_dir contains a checkpoint,
training resumes from it. Ctrl-C saves a checkpoint after the current step and
stops.`;

/** `vit-msn train`, with an option for each of the library's training options. */
export function add_train(program: Command, signal: AbortSignal): void {
  add_training_command(program, {
    name: "train",
    description:
      "fine-tune a classifier on folders or lists of images, like transformers' run_image_classification.py",
    help: HELP,
    options: OPTIONS,
    translate,
    run: (options) => {
      const flags = pick(options, Object.keys(FLAGS)) as TrainFlags;
      return train(flags, pick(options, Object.keys(TRAINING_HELP)) as TrainingOptions, signal);
    },
  });
}
