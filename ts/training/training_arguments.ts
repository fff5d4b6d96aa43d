import { invalid_argument, show, type VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import { is_record, unknown_option } from "../options.ts";
import { OPTIMIZERS, type OptimizerName } from "./optimizers.ts";
import { POLYNOMIAL_END, SCHEDULES, type Schedule } from "./schedules.ts";

/** When something is done: never, every N optimiser steps, or after each epoch. */
export const STRATEGIES = ["no", "steps", "epoch"] as const;
export type Strategy = (typeof STRATEGIES)[number];

/** How training images are drawn: each once an epoch, or with replacement so that classes are equally frequent. */
export const SAMPLING_STRATEGIES = ["random", "class_balanced"] as const;
export type SamplingStrategy = (typeof SAMPLING_STRATEGIES)[number];
/** The views of an image in evaluations: only the image, or also its mirror image, with the mean of the logits. */
export const TEST_TIME_AUGMENTATIONS = ["none", "flip"] as const;
export type TestTimeAugmentation = (typeof TEST_TIME_AUGMENTATIONS)[number];

/** The options of a training run, with the names and defaults of transformers' TrainingArguments. */
export interface TrainingOptions {
  /**
   * Where checkpoints and results go: a folder's path; in browsers a FileSystemDirectoryHandle. Required for
   * saving.
   */
  output_dir?: SaveDirectory;

  /** Passes over the data; default 3. */
  num_train_epochs?: number;
  /** Optimiser steps in all, instead of num_train_epochs; default -1: unset. */
  max_steps?: number;
  /** Images per forward and backward pass; default 8. */
  per_device_train_batch_size?: number;
  /** Images per forward pass of an evaluation; default 8. */
  per_device_eval_batch_size?: number;
  /** Batches whose gradients are accumulated for one optimiser step; default 1. */
  gradient_accumulation_steps?: number;
  /** Skip an epoch's last batch if it is smaller; default false. */
  dataloader_drop_last?: boolean;
  /**
   * "random" (default): every image once an epoch; "class_balanced": as many draws, with replacement, in which all classes
   * are equally frequent.
   */
  train_sampling_strategy?: SamplingStrategy;

  /** The maximum learning rate; default 5e-5. */
  learning_rate?: number;
  /** Default "linear". */
  lr_scheduler_type?: Schedule;
  /** Warm-up steps, or below 1 their share of all steps; default 0. */
  warmup_steps?: number;
  /** The share of all steps that warm up, if warmup_steps is 0; default 0. */
  warmup_ratio?: number;
  /** "adamw_torch" (default), "sgd" or "lars". */
  optim?: OptimizerName;
  /** Of every parameter but biases and norms; default 0. */
  weight_decay?: number;
  /** Default 0.9. */
  adam_beta1?: number;
  /** Default 0.999. */
  adam_beta2?: number;
  /** Default 1e-8. */
  adam_epsilon?: number;
  /** Of "sgd" and "lars"; default 0.9. */
  momentum?: number;
  /** Of "sgd"; default false. */
  nesterov?: boolean;
  /** Of "lars"; default 0.001. */
  lars_trust_coefficient?: number;
  /** Clip the norm of all gradients to this; 0: don't clip. Default 1. */
  max_grad_norm?: number;
  /** The factor from each layer's learning rate to that of the layer below; default 1. */
  layer_decay?: number;
  /** Of the cross-entropy; default 0. */
  label_smoothing_factor?: number;

  /** The weight of each class in the cross-entropy, in the order of their ids; default 1 for all. */
  class_weights?: readonly number[];
  /** α of Mixup's Beta(α, α); 0: no Mixup. Default 0 (timm's --mixup). */
  mixup_alpha?: number;
  /** α of CutMix's Beta(α, α); 0: no CutMix. Default 0 (timm's --cutmix). */
  cutmix_alpha?: number;
  /** The probability that a training batch is mixed, if either is on; default 1. */
  mixup_prob?: number;
  /** The probability of CutMix instead of Mixup, if both are on; default 0.5. */
  mixup_switch_prob?: number;
  /** The probability that a box of a training image becomes noise; default 0 (timm's --reprob). */
  random_erasing_prob?: number;
  /**
   * Stochastic depth: the probability that an image skips the last layer's attention, and that it skips its MLP. It falls
   * linearly to 0 in the first layer. Default 0 (timm's --drop-path).
   */
  drop_path_rate?: number;
  /**
   * The decay of a moving average of the weights, such as 0.9999, which evaluations, saved models and the trained model
   * have instead of the last step's; 0: none. Default 0 (timm's --model-ema-decay).
   */
  ema_decay?: number;

  /**
   * The rank of low-rank adapters (LoRA), which learn with the classifier while all else is frozen; evaluations and saved
   * models have them merged. 0: none. Default 0.
   */
  lora_r?: number;
  /** Adapters are multiplied by lora_alpha / lora_r; default 8. */
  lora_alpha?: number;
  /** Dropout before the adapters; query, key and value share it. Default 0. */
  lora_dropout?: number;
  /**
   * The layers with adapters, by the ends of their names, as in peft: "query", "key", "value", "attention.output.dense",
   * "intermediate.dense", "output.dense" (of attention and MLP), "dense" (all three). Default ["query", "value"].
   */
  lora_target_modules?: readonly string[];

  /** Train only the classifier; default false. */
  freeze_backbone?: boolean;
  /** Freeze the embeddings and this many layers from the bottom; default 0: nothing. */
  freeze_layers?: number;
  /**
   * Freeze parameters whose checkpoint key has one of these prefixes, such as "embeddings."; default none.
   */
  freeze_keys?: readonly string[];
  /**
   * Recompute activations instead of storing them: less memory, a third more time, the same results; default
   * false.
   */
  gradient_checkpointing?: boolean;

  /** Default "no". */
  eval_strategy?: Strategy;
  /** Optimiser steps between evaluations; default logging_steps. */
  eval_steps?: number;
  /**
   * "flip": evaluations and predictions average the logits of each image and its mirror image; "none" (default).
   */
  test_time_augmentation?: TestTimeAugmentation;
  /** Also evaluate before the first step; default false. */
  eval_on_start?: boolean;
  /** Default "steps" with an output_dir, else "no". */
  save_strategy?: Strategy;
  /** Optimiser steps between checkpoints; default 500. */
  save_steps?: number;
  /** The maximum number of checkpoints, including the best one; default unlimited. */
  save_total_limit?: number;
  /** Default "steps". */
  logging_strategy?: Strategy;
  /** Optimiser steps between entries of the log; default 500. */
  logging_steps?: number;
  /** Also log the first step; default false. */
  logging_first_step?: boolean;
  /**
   * Load the best checkpoint's weights at the end; each save must coincide with an evaluation. Default false.
   */
  load_best_model_at_end?: boolean;
  /** The metric of evaluate() that selects the best model, with or without "eval_"; default "loss". */
  metric_for_best_model?: string;
  /** Default true, false for a loss. */
  greater_is_better?: boolean;

  /** Of dropout, and of everything that data_seed doesn't cover; default 42. */
  seed?: number;
  /** Of the images' order and augmentation; default seed. */
  data_seed?: number;
}

/** The rule that an option's value must satisfy. */
export type OptionRule =
  | { kind: "integer" | "number"; min: number; max: number; or?: number }
  /** [min, max]. */
  | { kind: "range"; min: number; max: number }
  | { kind: "flag" }
  | { kind: "choice"; choices: readonly string[] }
  | { kind: "text" }
  | { kind: "texts" }
  /** A list of numbers of 0 or more. */
  | { kind: "numbers" }
  | { kind: "folder" };

/** Rules that several options share. */
export const RULES = {
  count: (min = 0): OptionRule => ({ kind: "integer", min, max: Number.MAX_SAFE_INTEGER }),
  share: { kind: "number", min: 0, max: 1 },
  positive: { kind: "number", min: 0, max: 1e6 },
  flag: { kind: "flag" },
  seed: { kind: "integer", min: 0, max: 0xffffffff },
} as const satisfies Record<string, OptionRule | ((min?: number) => OptionRule)>;
const { count, share, positive, flag, seed } = RULES;

/** The rule of every option, for the command line and the checks. */
export const TRAINING_OPTIONS: Readonly<Record<keyof TrainingOptions, OptionRule>> = {
  output_dir: { kind: "folder" },
  num_train_epochs: { kind: "number", min: 0, max: 1e6 },
  max_steps: { kind: "integer", min: 1, max: Number.MAX_SAFE_INTEGER, or: -1 },
  per_device_train_batch_size: count(1),
  per_device_eval_batch_size: count(1),
  gradient_accumulation_steps: count(1),
  dataloader_drop_last: flag,
  train_sampling_strategy: { kind: "choice", choices: SAMPLING_STRATEGIES },
  learning_rate: positive,
  lr_scheduler_type: { kind: "choice", choices: SCHEDULES },
  warmup_steps: { kind: "number", min: 0, max: Number.MAX_SAFE_INTEGER },
  warmup_ratio: share,
  optim: { kind: "choice", choices: OPTIMIZERS },
  weight_decay: positive,
  adam_beta1: share,
  adam_beta2: share,
  adam_epsilon: positive,
  momentum: share,
  nesterov: flag,
  lars_trust_coefficient: positive,
  max_grad_norm: positive,
  layer_decay: share,
  label_smoothing_factor: share,
  class_weights: { kind: "numbers" },
  mixup_alpha: positive,
  cutmix_alpha: positive,
  mixup_prob: share,
  mixup_switch_prob: share,
  random_erasing_prob: share,
  drop_path_rate: share,
  ema_decay: share,
  lora_r: count(),
  lora_alpha: positive,
  lora_dropout: share,
  lora_target_modules: { kind: "texts" },
  freeze_backbone: flag,
  freeze_layers: count(),
  freeze_keys: { kind: "texts" },
  gradient_checkpointing: flag,
  eval_strategy: { kind: "choice", choices: STRATEGIES },
  eval_steps: count(1),
  test_time_augmentation: { kind: "choice", choices: TEST_TIME_AUGMENTATIONS },
  eval_on_start: flag,
  save_strategy: { kind: "choice", choices: STRATEGIES },
  save_steps: count(1),
  save_total_limit: count(1),
  logging_strategy: { kind: "choice", choices: STRATEGIES },
  logging_steps: count(1),
  logging_first_step: flag,
  load_best_model_at_end: flag,
  metric_for_best_model: { kind: "text" },
  greater_is_better: flag,
  seed,
  data_seed: seed,
};

/** Options without a default. */
type Optional = "output_dir" | "save_total_limit" | "class_weights";
type Filled = Required<Omit<TrainingOptions, Optional>> & Pick<TrainingOptions, Optional>;

const DEFAULTS = {
  num_train_epochs: 3,
  max_steps: -1,
  per_device_train_batch_size: 8,
  per_device_eval_batch_size: 8,
  gradient_accumulation_steps: 1,
  dataloader_drop_last: false,
  train_sampling_strategy: "random",
  learning_rate: 5e-5,
  lr_scheduler_type: "linear",
  warmup_steps: 0,
  warmup_ratio: 0,
  optim: "adamw_torch",
  weight_decay: 0,
  adam_beta1: 0.9,
  adam_beta2: 0.999,
  adam_epsilon: 1e-8,
  momentum: 0.9,
  nesterov: false,
  lars_trust_coefficient: 0.001,
  max_grad_norm: 1,
  layer_decay: 1,
  label_smoothing_factor: 0,
  mixup_alpha: 0,
  cutmix_alpha: 0,
  mixup_prob: 1,
  mixup_switch_prob: 0.5,
  random_erasing_prob: 0,
  drop_path_rate: 0,
  ema_decay: 0,
  lora_r: 0,
  lora_alpha: 8,
  lora_dropout: 0,
  lora_target_modules: ["query", "value"],
  freeze_backbone: false,
  freeze_layers: 0,
  freeze_keys: [],
  gradient_checkpointing: false,
  eval_strategy: "no",
  test_time_augmentation: "none",
  eval_on_start: false,
  save_steps: 500,
  logging_strategy: "steps",
  logging_steps: 500,
  logging_first_step: false,
  load_best_model_at_end: false,
  metric_for_best_model: "loss",
  seed: 42,
} as const satisfies TrainingOptions;

/** The checked options of a training run, with defaults filled in. */
export interface TrainingArguments extends Filled {}

/**
 * The checked options of a training run.
 * @throws VitMsnError INVALID_ARGUMENT that names the option: an unknown option, a wrong value, or options
 *   that contradict each other.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor assigns every option.
export class TrainingArguments {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "TrainingArguments";
  constructor(options: TrainingOptions = {}) {
    const given = checked_options(options, TRAINING_OPTIONS, "Training");
    const logging_steps = given.logging_steps ?? DEFAULTS.logging_steps;
    const metric = (given.metric_for_best_model ?? DEFAULTS.metric_for_best_model).replace(/^eval_/, "");
    const derived = {
      eval_steps: logging_steps,
      save_strategy: given.output_dir === undefined ? "no" : "steps",
      greater_is_better: !metric.endsWith("loss"),
      data_seed: given.seed ?? DEFAULTS.seed,
    } as const;
    Object.assign(this, DEFAULTS, derived, given, { metric_for_best_model: metric });
    this.#check_together();
  }

  /** The number of warm-up steps. */
  get_warmup_steps(num_training_steps: number): number {
    const { warmup_steps, warmup_ratio } = this;
    if (warmup_steps >= 1) return Math.trunc(warmup_steps);
    return Math.ceil(num_training_steps * (warmup_steps > 0 ? warmup_steps : warmup_ratio));
  }

  /** The options as JSON values. */
  to_dict(): Record<string, unknown> {
    return options_to_dict(this);
  }

  #check_together(): void {
    check_output_dir(this);
    if (this.lora_r > 0 && (this.freeze_backbone || this.freeze_layers > 0 || this.freeze_keys.length > 0))
      throw invalid_option(
        "lora_r freezes everything but adapters and classifier: use it without freeze_… options.",
        "lora_r",
      );
    for (const name of ["drop_path_rate", "ema_decay", "lora_dropout"] as const)
      if (this[name] === 1) throw invalid_option(`${name} must be below 1.`, name);
    if (this.nesterov && this.momentum === 0)
      throw invalid_option("nesterov needs a momentum above 0.", "nesterov");
    if (this.lr_scheduler_type === "polynomial" && this.learning_rate <= POLYNOMIAL_END)
      throw invalid_option(
        `learning_rate must be above ${POLYNOMIAL_END}, where lr_scheduler_type "polynomial" ends, got ${this.learning_rate}.`,
        "learning_rate",
      );
    if (!this.load_best_model_at_end) return;
    if (this.eval_strategy === "no" || this.eval_strategy !== this.save_strategy) {
      throw invalid_option(
        'load_best_model_at_end needs eval_strategy and save_strategy to be the same and not "no"; ' +
          `they are "${this.eval_strategy}" and "${this.save_strategy}".`,
        "load_best_model_at_end",
      );
    }
    if (this.eval_strategy === "steps" && this.save_steps % this.eval_steps !== 0) {
      throw invalid_option(
        `load_best_model_at_end needs save_steps (${this.save_steps}) to be a multiple of eval_steps (${this.eval_steps}).`,
        "save_steps",
      );
    }
  }
}

/** The options as JSON values: without an output_dir that isn't a path. */
export function options_to_dict<Options extends { output_dir?: SaveDirectory | undefined }>({
  output_dir,
  ...options
}: Options): Record<string, unknown> {
  return typeof output_dir === "string" ? { output_dir, ...options } : { ...options };
}

/** @throws VitMsnError INVALID_ARGUMENT if checkpoints have no folder to go to. */
export function check_output_dir({
  save_strategy,
  output_dir,
}: {
  save_strategy: Strategy;
  output_dir?: SaveDirectory | undefined;
}): void {
  if (save_strategy === "no" || output_dir !== undefined) return;
  throw invalid_option(`save_strategy "${save_strategy}" needs an output_dir.`, "output_dir");
}

/**
 * Checks the given options one by one.
 * @param what the owner of the options, for messages.
 * @throws VitMsnError INVALID_ARGUMENT that names the option.
 */
export function checked_options<Options extends object>(
  options: Options,
  rules: Readonly<Record<keyof Options, OptionRule>>,
  what: string,
): Options {
  if (!is_record(options))
    throw invalid_argument(`${what} needs an object of options, got ${show(options)}.`);
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [name, value] of given) {
    if (!Object.hasOwn(rules, name)) throw unknown_option(what, name, Object.keys(rules));
    const expected = unmet_rule(rules[name as keyof Options], value);
    if (expected !== undefined)
      throw invalid_option(`${name} must be ${expected}, got ${show(value)}.`, name);
  }
  return Object.fromEntries(given) as Options;
}

/** What a value should be; undefined if it satisfies the rule. */
export function unmet_rule(rule: OptionRule, value: unknown): string | undefined {
  switch (rule.kind) {
    case "integer":
    case "number": {
      const fits = rule.kind === "integer" ? Number.isSafeInteger(value) : Number.isFinite(value);
      if (fits && (value as number) >= rule.min && (value as number) <= rule.max) return undefined;
      if (rule.or !== undefined && value === rule.or) return undefined;
      if (rule.kind === "integer" && rule.min === 1 && rule.max >= 1e6) return "a positive integer";
      const kind = rule.kind === "integer" ? "an integer" : "a number";
      return rule.max >= 1e6 ? `${kind} of ${rule.min} or more` : `${kind} from ${rule.min} to ${rule.max}`;
    }
    case "range": {
      const { min, max } = rule;
      const [low, high] = Array.isArray(value) && value.length === 2 ? value : [];
      const fits = Number.isFinite(low) && Number.isFinite(high) && min <= low && low <= high && high <= max;
      return fits ? undefined : `two numbers from ${min} to ${max}, the lower one first`;
    }
    case "flag":
      return typeof value === "boolean" ? undefined : "true or false";
    case "choice":
      return rule.choices.includes(value as string) ? undefined : `one of ${rule.choices.join(", ")}`;
    case "text":
      return typeof value === "string" && value !== "" ? undefined : "a non-empty string";
    case "texts":
      return Array.isArray(value) && value.every((text) => typeof text === "string")
        ? undefined
        : "a list of strings";
    case "numbers":
      return Array.isArray(value) && value.length > 0 && value.every((x) => Number.isFinite(x) && x >= 0)
        ? undefined
        : "a list of numbers of 0 or more";
    case "folder": {
      const is_path = (typeof value === "string" && value !== "") || is_a(value, "URL");
      return is_path || (typeof value === "object" && value !== null) ? undefined : "a folder";
    }
  }
}

/** @internal */
export function invalid_option(message: string, argument: string): VitMsnError {
  return invalid_argument(message, argument);
}
