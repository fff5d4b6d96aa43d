import type { VitMsnError } from "../../errors.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { ViTMSNConfig } from "../../model/configuration_vit_msn.ts";
import { is_record } from "../../options.ts";
import {
  check_output_dir,
  checked_options,
  invalid_option,
  type OptionRule,
  options_to_dict,
  RULES,
  STRATEGIES,
  type Strategy,
} from "../training_arguments.ts";

/**
 * The options of a pre-training run. Names are the Trainer's if it has them, else those of MSN's configs;
 * defaults are those of configs/pretrain/msn_vits16.yaml (github.com/facebookresearch/msn) except for the
 * length of the run.
 */
export interface MSNPretrainingOptions {
  /** Where checkpoints go: a folder's path; in browsers a FileSystemDirectoryHandle. Required for saving. */
  output_dir?: SaveDirectory;

  /**
   * Passes over the data; default 100 (the paper: 800 for ViT-S/16, 600 for B/16 and L/16, 300 for B/4, 200
   * for L/7).
   */
  num_train_epochs?: number;
  /** Steps in all, instead of num_train_epochs; default -1: unset. */
  max_steps?: number;
  /**
   * Images per step; default 64. Batch norm, Sinkhorn and the mean entropy are computed over the whole batch.
   */
  per_device_train_batch_size?: number;
  /**
   * Views that pass the encoder together. If a step has more, activations are recomputed batch by batch: the loss and
   * gradients of the whole batch for a third more time. Default: as many as the engine's memory holds, by an estimate.
   */
  encoder_batch_size?: number;
  /** Skip an epoch's last batch if it is smaller; default true. */
  dataloader_drop_last?: boolean;

  /** Random views to learn from, in addition to the target view; default 1. */
  rand_views?: number;
  /** Focal views: small crops; default 10. */
  focal_views?: number;
  /** Height and width of random views in pixels; default the model's image_size. */
  rand_size?: number;
  /** The same of focal views; default 96/224 of rand_size, in whole patches. */
  focal_size?: number;
  /** The share of an image's area that a random view shows; default [0.3, 1]. */
  rand_crop_scale?: readonly [number, number];
  /** The same of a focal view; default [0.05, 0.3]. */
  focal_crop_scale?: readonly [number, number];
  /** Aspect ratio (width by height) of the crops; default [3/4, 4/3]. */
  crop_ratio?: readonly [number, number];
  /** Probability that a view is mirrored; default 0.5. */
  flip_prob?: number;
  /**
   * Strength of the colour jitter: 1 is brightness, contrast and saturation by up to 80 %, hue by 0.2;
   * default 0.5.
   */
  color_jitter_strength?: number;
  /** Probability of the colour jitter; default 0.8. */
  color_jitter_prob?: number;
  /** Maximum relative change of brightness, before color_jitter_strength; default 0.8. */
  brightness?: number;
  /** The same of contrast; default 0.8. */
  contrast?: number;
  /** The same of saturation; default 0.8. */
  saturation?: number;
  /** Maximum shift of the hue, as a share of the colour circle, before color_jitter_strength; default 0.2. */
  hue?: number;
  /** Probability that a view becomes grey; default 0.2. */
  grayscale_prob?: number;
  /** Probability that a view is blurred; default 0.5. */
  blur_prob?: number;
  /**
   * Range of the blur's standard deviation in pixels of the view; default [0.1, 2], which is strong for views
   * below 100 pixels.
   */
  blur_radius?: readonly [number, number];

  /**
   * Share of the patches that anchors drop, the random ones or, if there are none, the focal ones; focal anchors of the
   * same size as random ones drop them, too, as in the original. Default 0.15 (the paper: 0.3 for B/16 and B/8, 0.7 for B/4
   * and L/7).
   */
  patch_drop?: number;

  /** Width of the projection head's two hidden layers; default 2048. */
  hidden_dim?: number;
  /** Dimensions of its output and of prototypes; default 256. */
  output_dim?: number;
  /** Prototypes; default 1024. */
  num_proto?: number;
  /** Of the softmax over prototypes; default 0.1. */
  temperature?: number;
  /** Temperature that sharpens the targets, at the start; default 0.25. */
  start_sharpen?: number;
  /** The same at the end of the schedule; default start_sharpen. */
  final_sharpen?: number;
  /** Balance targets over prototypes by Sinkhorn–Knopp iterations; default true. */
  use_sinkhorn?: boolean;
  /** The number of these iterations; default 3. */
  sinkhorn_iterations?: number;
  /** Weight of mean-entropy maximisation; default 1 (without Sinkhorn, 5 did best in the paper). */
  memax_weight?: number;
  /** Weight of the anchors' own entropy; default 0. */
  ent_weight?: number;

  /** The maximum learning rate; default 1e-3. */
  learning_rate?: number;
  /** The learning rate at the start of the warm-up; default a fifth of learning_rate. */
  start_learning_rate?: number;
  /** The learning rate at the end of the cosine; default learning_rate / 1000. */
  final_learning_rate?: number;
  /** Warm-up epochs, which may be fractional; default 15, or a tenth of the run if that is less. */
  warmup_epochs?: number;
  /** At the start; applies to parameters with two or more dimensions, except the prototypes. Default 0.04. */
  weight_decay?: number;
  /** The same at the end of the schedule; default 0.4. */
  final_weight_decay?: number;
  /** Momentum of the target's moving average, at the start; default 0.996. */
  ema_momentum?: number;
  /** The same at the end of the schedule; default 1. */
  final_ema_momentum?: number;
  /** The schedules' length relative to the run, which ends before they do; default 1.25. */
  schedule_stretch?: number;
  /** Default 0.9. */
  adam_beta1?: number;
  /** Default 0.999. */
  adam_beta2?: number;
  /** Default 1e-8. */
  adam_epsilon?: number;
  /**
   * Clip the norm of the gradients of encoder and head, not of prototypes, to this; 0: don't clip. Default 3.
   */
  max_grad_norm?: number;
  /**
   * Recompute activations instead of storing them: less memory, a third more time, the same results; default
   * false.
   */
  gradient_checkpointing?: boolean;

  /** Default "steps" with an output_dir, else "no". */
  save_strategy?: Strategy;
  /** Steps between checkpoints; default 500. */
  save_steps?: number;
  /** The maximum number of checkpoints; default unlimited. */
  save_total_limit?: number;
  /** Steps between entries of the log; default 10. */
  logging_steps?: number;
  /** Also log the first step; default false. */
  logging_first_step?: boolean;
  /** The number of recent steps over which used prototypes are counted; default 50. */
  usage_window?: number;

  /** Of fresh parameters, dropped patches and dropout; default 42. */
  seed?: number;
  /** Of the images' order and views; default seed. */
  data_seed?: number;
}

const { count, share, positive, flag, seed } = RULES;
const shares: OptionRule = { kind: "range", min: 0, max: 1 };
const factor: OptionRule = { kind: "number", min: 1e-6, max: 1e6 };

/** The rule of every option, for the command line and the checks. */
export const MSN_PRETRAINING_OPTIONS: Readonly<Record<keyof MSNPretrainingOptions, OptionRule>> = {
  output_dir: { kind: "folder" },
  num_train_epochs: { kind: "number", min: 0, max: 1e6 },
  max_steps: { kind: "integer", min: 1, max: Number.MAX_SAFE_INTEGER, or: -1 },
  per_device_train_batch_size: count(2),
  encoder_batch_size: count(1),
  dataloader_drop_last: flag,
  rand_views: count(),
  focal_views: count(),
  rand_size: count(1),
  focal_size: count(1),
  rand_crop_scale: shares,
  focal_crop_scale: shares,
  crop_ratio: { kind: "range", min: 0.01, max: 100 },
  flip_prob: share,
  color_jitter_strength: positive,
  color_jitter_prob: share,
  brightness: positive,
  contrast: positive,
  saturation: positive,
  hue: positive,
  grayscale_prob: share,
  blur_prob: share,
  blur_radius: { kind: "range", min: 0, max: 1000 },
  patch_drop: share,
  hidden_dim: count(1),
  output_dim: count(1),
  num_proto: count(2),
  temperature: factor,
  start_sharpen: factor,
  final_sharpen: factor,
  use_sinkhorn: flag,
  sinkhorn_iterations: { kind: "integer", min: 1, max: 1000 },
  memax_weight: positive,
  ent_weight: positive,
  learning_rate: positive,
  start_learning_rate: positive,
  final_learning_rate: positive,
  warmup_epochs: { kind: "number", min: 0, max: 1e6 },
  weight_decay: positive,
  final_weight_decay: positive,
  ema_momentum: share,
  final_ema_momentum: share,
  schedule_stretch: { kind: "number", min: 1, max: 1000 },
  adam_beta1: share,
  adam_beta2: share,
  adam_epsilon: positive,
  max_grad_norm: positive,
  gradient_checkpointing: flag,
  save_strategy: { kind: "choice", choices: STRATEGIES },
  save_steps: count(1),
  save_total_limit: count(1),
  logging_steps: count(1),
  logging_first_step: flag,
  usage_window: count(1),
  seed,
  data_seed: seed,
};

/** Options whose default depends on the model or the data. */
type Optional =
  | "output_dir"
  | "encoder_batch_size"
  | "save_total_limit"
  | "rand_size"
  | "focal_size"
  | "warmup_epochs";
type Filled = Required<Omit<MSNPretrainingOptions, Optional>> & Pick<MSNPretrainingOptions, Optional>;

const DEFAULTS = {
  num_train_epochs: 100,
  max_steps: -1,
  per_device_train_batch_size: 64,
  dataloader_drop_last: true,
  rand_views: 1,
  focal_views: 10,
  rand_crop_scale: [0.3, 1],
  focal_crop_scale: [0.05, 0.3],
  crop_ratio: [3 / 4, 4 / 3],
  flip_prob: 0.5,
  color_jitter_strength: 0.5,
  color_jitter_prob: 0.8,
  brightness: 0.8,
  contrast: 0.8,
  saturation: 0.8,
  hue: 0.2,
  grayscale_prob: 0.2,
  blur_prob: 0.5,
  blur_radius: [0.1, 2],
  patch_drop: 0.15,
  hidden_dim: 2048,
  output_dim: 256,
  num_proto: 1024,
  temperature: 0.1,
  start_sharpen: 0.25,
  use_sinkhorn: true,
  sinkhorn_iterations: 3,
  memax_weight: 1,
  ent_weight: 0,
  learning_rate: 1e-3,
  weight_decay: 0.04,
  final_weight_decay: 0.4,
  ema_momentum: 0.996,
  final_ema_momentum: 1,
  schedule_stretch: 1.25,
  adam_beta1: 0.9,
  adam_beta2: 0.999,
  adam_epsilon: 1e-8,
  max_grad_norm: 3,
  gradient_checkpointing: false,
  save_steps: 500,
  logging_steps: 10,
  logging_first_step: false,
  usage_window: 50,
  seed: 42,
} as const satisfies MSNPretrainingOptions;

/** The paper's size of focal views relative to random ones. */
const FOCAL_SHARE = 96 / 224;
const WARMUP_EPOCHS = 15;
const WARMUP_SHARE = 0.1;
/** Half the colour circle: a larger shift is a smaller one in the other direction. */
const MAX_HUE = 0.5;

/** The checked options of a pre-training run, with the defaults that don't depend on model or data. */
export interface MSNPretrainingArguments extends Filled {}

/**
 * The checked options of a pre-training run.
 * @throws VitMsnError INVALID_ARGUMENT that names the option: an unknown option, a wrong value, or options
 *   that contradict each other.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor assigns every option.
export class MSNPretrainingArguments {
  constructor(options: MSNPretrainingOptions = {}) {
    if (is_record(options) && Object.hasOwn(options, "gradient_accumulation_steps")) throw no_accumulation();
    const given = checked_options(options, MSN_PRETRAINING_OPTIONS, "Pre-training");
    const learning_rate = given.learning_rate ?? DEFAULTS.learning_rate;
    const derived = {
      start_learning_rate: learning_rate / 5,
      final_learning_rate: learning_rate / 1000,
      final_sharpen: given.start_sharpen ?? DEFAULTS.start_sharpen,
      save_strategy: given.output_dir === undefined ? "no" : "steps",
      data_seed: given.seed ?? DEFAULTS.seed,
    } as const;
    Object.assign(this, DEFAULTS, derived, given);
    this.#check_together();
  }

  /**
   * Height and width of random and focal views, in pixels, for a model. @throws VitMsnError INVALID_ARGUMENT.
   */
  get_sizes(config: ViTMSNConfig): { rand_size: number; focal_size: number } {
    const { image_grid, patch_grid } = config;
    const patch = Math.max(patch_grid.height, patch_grid.width);
    const { rand_size = Math.max(image_grid.height, image_grid.width) } = this;
    const { focal_size = Math.max(1, Math.round((rand_size * FOCAL_SHARE) / patch)) * patch } = this;
    for (const [name, size] of Object.entries({ rand_size, focal_size })) {
      if (size >= patch && size % patch_grid.height === 0 && size % patch_grid.width === 0) continue;
      throw invalid_option(
        `${name} must be a multiple of the model's patch_size (${patch_grid.height}×${patch_grid.width}), got ${size}.`,
        name,
      );
    }
    return { rand_size, focal_size };
  }

  /** The number of warm-up steps. */
  get_warmup_steps(steps_per_epoch: number, max_steps: number): number {
    const { warmup_epochs = Math.min(WARMUP_EPOCHS, (WARMUP_SHARE * max_steps) / steps_per_epoch) } = this;
    return Math.trunc(warmup_epochs * steps_per_epoch);
  }

  /** The options as JSON values. */
  to_dict(): Record<string, unknown> {
    return options_to_dict(this);
  }

  #check_together(): void {
    check_output_dir(this);
    if (this.rand_views + this.focal_views === 0) {
      throw invalid_option(
        "rand_views and focal_views are both 0, so there is nothing to learn from; set one of them to 1 or more.",
        "rand_views",
      );
    }
    if (this.patch_drop === 1)
      throw invalid_option("patch_drop must be below 1, so that at least one patch remains.", "patch_drop");
    for (const name of ["rand_crop_scale", "focal_crop_scale"] as const) {
      if (this[name][1] === 0) throw invalid_option(`${name} must end above 0.`, name);
    }
    if (this.hue * this.color_jitter_strength > MAX_HUE) {
      throw invalid_option(
        `hue times color_jitter_strength must be at most ${MAX_HUE}, got ${this.hue * this.color_jitter_strength}.`,
        "hue",
      );
    }
  }
}

function no_accumulation(): VitMsnError {
  return invalid_option(
    "Pre-training has no gradient_accumulation_steps: batch norm, Sinkhorn and the mean entropy are computed over a whole batch, so " +
      "accumulating smaller ones would change the loss. Large batches need no more memory than small ones: encoder_batch_size splits them " +
      "without changing the loss.",
    "gradient_accumulation_steps",
  );
}
