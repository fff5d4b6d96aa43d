import { invalid_argument } from "../errors.ts";
import { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { ViTMSNForImageClassification, ViTMSNModel } from "../model/modeling_vit_msn.ts";
import {
  abort_signal,
  any,
  callable,
  check_options,
  flag,
  is_record,
  type Rule,
  type Rules,
  text,
} from "../options.ts";
import type { ImageCollatorOptions } from "./data/collate.ts";
import type { ColorJitterOptions } from "./data/color_transforms.ts";
import type { ImageFolderOptions } from "./data/image_folder.ts";
import type { LabelledImagesOptions } from "./data/open_labelled_images.ts";
import type { RandAugmentOptions } from "./data/rand_augment.ts";
import type { RandomResizedCropOptions } from "./data/transforms.ts";
import type { UnlabelledImageFolderOptions } from "./data/unlabelled_image_folder.ts";
import type { MSNPretrainerOptions, MSNSaveOptions, OriginalSaveOptions } from "./msn/msn_pretrainer.ts";
import type { TableOptions } from "./tables/image_table.ts";
import type { EvaluateOptions, TrainerOptions } from "./trainer.ts";
import type { TrainCallOptions } from "./training_loop.ts";

/** A rule for each option. */
type Of<Options> = Readonly<Record<keyof Options, Rule>>;

const image_processor: Rule = ["a ViTImageProcessor", (value) => value instanceof ViTImageProcessor];
const list: Rule = ["an array", Array.isArray];
const error_or_skip: Rule = ["error", "skip"];
const range: Rule = [
  "two numbers",
  (value) => Array.isArray(value) && value.length === 2 && value.every(Number.isFinite),
];
export const number: Rule = ["a finite number", Number.isFinite];

/** ImageCollatorOptions. */
export const COLLATOR_RULES: Of<ImageCollatorOptions> = {
  config: any,
  processor: image_processor,
  train_transform: callable,
  eval_transform: callable,
  unreadable_images: error_or_skip,
};

/** TrainerOptions. */
export const TRAINER_RULES: Of<TrainerOptions> = {
  model: ["a ViTMSNForImageClassification", (value) => value instanceof ViTMSNForImageClassification],
  args: any,
  train_dataset: any,
  eval_dataset: any,
  image_processor,
  train_transform: callable,
  eval_transform: callable,
  unreadable_images: error_or_skip,
  data_collator: callable,
  compute_metrics: callable,
  compute_loss: callable,
  callbacks: list,
};

/** MSNPretrainerOptions. */
export const PRETRAINER_RULES: Of<MSNPretrainerOptions> = {
  model: ["a ViTMSNModel", (value) => value instanceof ViTMSNModel],
  args: any,
  initial_checkpoint: any,
  continue_schedule: flag,
  train_dataset: any,
  image_processor,
  unreadable_images: error_or_skip,
  view_collator: callable,
  callbacks: list,
};

/** TrainCallOptions. */
export const TRAIN_RULES: Of<TrainCallOptions> = {
  resume_from_checkpoint: any,
  changed_options: ["warn", "error"],
  signal: abort_signal,
};
export const EVALUATE_RULES: Of<EvaluateOptions> = { metric_key_prefix: text, signal: abort_signal };
export const SPLIT_RULES: Of<UnlabelledImageFolderOptions> = { split: ["train", "validation", "test"] };
/** TableOptions. */
const TABLE_RULES: Of<TableOptions> = {
  image_column_name: text,
  label_column_name: text,
  label_separator: ["text of at least one character", (value) => typeof value === "string" && value !== ""],
  problem_type: ["single_label_classification", "multi_label_classification", "regression"],
  classes: list,
  missing_images: error_or_skip,
  signal: abort_signal,
};
export const FOLDER_RULES: Of<ImageFolderOptions> = {
  ...SPLIT_RULES,
  ...TABLE_RULES,
  empty_classes: error_or_skip,
};
export const LABELLED_RULES: Of<LabelledImagesOptions> = { ...FOLDER_RULES, image_dir: any };
export const JITTER_RULES: Of<ColorJitterOptions> = {
  brightness: number,
  contrast: number,
  saturation: number,
  hue: number,
};
export const RAND_AUGMENT_RULES: Of<RandAugmentOptions> = {
  magnitude: number,
  magnitude_std: number,
  num_layers: number,
  prob: number,
  fill: ["a number or three numbers", (value) => [value].flat().every(Number.isFinite)],
};
export const CROP_RULES: Of<RandomResizedCropOptions> = { scale: range, ratio: range, resample: any };
export const ORIGINAL_RULES: Of<OriginalSaveOptions> = { file_name: text, distributed: flag };
export const BRANCH_RULES: Of<MSNSaveOptions> = { branch: ["target", "online"] };

/** Options of transformers' Trainer that have another name here. */
const RENAMED_OPTIONS: Readonly<Record<string, string>> = {
  compute_loss_func: "compute_loss, which also returns the gradient",
  optimizers: "args.optim and args.lr_scheduler_type",
  optimizer_cls_and_kwargs: "args.optim",
  model_init: "model",
  preprocess_logits_for_metrics: "compute_metrics",
  processing_class: "image_processor",
  tokenizer: "image_processor",
  feature_extractor: "image_processor",
};

/** As check_options, with advice for the names of transformers' Trainer. */
export function check_trainer(where: string, options: unknown, rules: Rules): void {
  const foreign =
    is_record(options) && Object.keys(options).find((name) => Object.hasOwn(RENAMED_OPTIONS, name));
  if (foreign)
    throw invalid_argument(`${where} has no option "${foreign}"; use ${RENAMED_OPTIONS[foreign]}.`, foreign);
  check_options(where, options, rules);
}
