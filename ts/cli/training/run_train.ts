import { with_locked_folder } from "../../files/index.ts";
import {
  env,
  type PretrainedOptions,
  type ProblemType,
  ViTImageProcessor,
  ViTMSNForImageClassification,
  VitMsnError,
} from "../../index.ts";
import {
  compose,
  confusion_matrix,
  EarlyStoppingCallback,
  image_splits,
  type LabelledImages,
  type LabelledImagesOptions,
  open_labelled_images,
  rand_augment,
  reference_transforms,
  Trainer,
  type TrainerCallback,
  TrainingArguments,
  type TrainingOptions,
} from "../../training/index.ts";
import { DownloadBars } from "../progress_bars.ts";
import { write_report } from "../report/write_report.ts";
import { notify } from "../terminal.ts";
import { check_classes } from "./classes.ts";
import {
  checkpoint_to_resume,
  interrupted,
  print_metrics,
  required,
  stop_on_signal,
} from "./interruptible_run.ts";
import { log_files } from "./log_file.ts";
import { TrainingBars } from "./progress_bars.ts";
import { type SharedFlags, shared_pretrained_options } from "./shared_options.ts";

const DEFAULT_MODEL = "facebook/vit-msn-small";
const DEFAULT_SPLIT = 0.15;
const DEFAULT_SEED = 42;
/** Skipped images that are named at the end. */
const MAX_NAMED = 10;

/** The options of `vit-msn train` in addition to those of the library, named as in run_image_classification.py. */
export interface TrainFlags extends SharedFlags {
  train_dir?: string;
  train_file?: string[];
  validation_dir?: string;
  validation_file?: string[];
  image_dir?: string;
  image_column_name?: string;
  label_column_name?: string;
  label_separator?: string;
  problem_type?: ProblemType;
  train_val_split?: number;
  stratified?: boolean;
  max_eval_samples?: number;
  empty_classes?: "error" | "skip";
  model_name_or_path?: string;
  image_processor_name?: string;
  ignore_mismatched_sizes?: boolean;
  dtype?: "float32" | "float16" | "bfloat16";
  device?: "wasm" | "webgpu" | "auto";
  rand_augment?: number;
  do_train?: boolean;
  do_eval?: boolean;
  early_stopping_patience?: number;
}

/** `vit-msn train`: fine-tunes on folders or lists of images; writes the model, metrics, figures and a model card. @returns the exit code. */
export async function train(
  flags: TrainFlags,
  options: TrainingOptions,
  signal: AbortSignal,
): Promise<number> {
  const { do_train: trains = true } = flags;
  const output_dir = required(options.output_dir as string | undefined, "output_dir", "train");
  const seed = options.seed ?? DEFAULT_SEED;
  const { train_dataset, eval_dataset } = await open_data(flags, trains, seed, signal);
  const args = new TrainingArguments(options);
  return with_locked_folder(output_dir, signal, () =>
    train_into(output_dir, { flags, trains, args, seed, train_dataset, eval_dataset }, signal),
  );
}

interface TrainRun {
  flags: TrainFlags;
  /** Whether to train, rather than only evaluate. */
  trains: boolean;
  args: TrainingArguments;
  seed: number;
  train_dataset: LabelledImages | undefined;
  eval_dataset: LabelledImages | undefined;
}

/** Runs while the output folder is locked. */
async function train_into(output_dir: string, run: TrainRun, signal: AbortSignal): Promise<number> {
  const { flags, args, seed, train_dataset, eval_dataset } = run;
  const resume = run.trains ? await checkpoint_to_resume(output_dir, flags) : undefined;
  const logs = await log_files(output_dir, flags);
  const data = (train_dataset ?? eval_dataset) as LabelledImages;
  const { model, processor } = await load_model(flags, data, seed, signal);
  const stop = stop_on_signal(signal);
  const bars = new TrainingBars(flags.quiet === true);
  try {
    const transforms = reference_transforms(processor);
    const { rand_augment: magnitude = 0 } = flags;
    const fill = [processor.image_mean].flat().map((mean) => Math.round(255 * mean));
    const trainer = new Trainer({
      model,
      args,
      train_dataset,
      eval_dataset,
      image_processor: processor,
      train_transform:
        magnitude > 0 ? compose(transforms.train, rand_augment({ magnitude, fill })) : transforms.train,
      eval_transform: transforms.eval,
      unreadable_images: flags.unreadable_images,
      callbacks: [...early_stopping(flags), ...logs, bars, stop.callback],
    });
    if (resume !== undefined) {
      const { metrics } = await trainer.train(resume);
      if (stop.has_stopped()) return interrupted(trainer, signal);
      await trainer.save_model();
      await trainer.save_metrics("train", metrics);
      await trainer.save_state();
    }
    await evaluate_and_report(trainer, run, bars, signal);
    return 0;
  } finally {
    bars.stop();
    stop.forget();
    await model.dispose();
  }
}

async function evaluate_and_report(
  trainer: Trainer,
  { flags, trains, train_dataset, eval_dataset }: TrainRun,
  bars: TrainingBars,
  signal: AbortSignal,
): Promise<void> {
  const evaluates = (flags.do_eval ?? true) && eval_dataset !== undefined;
  const evaluation = evaluates
    ? await trainer.predict(eval_dataset, { metric_key_prefix: "eval", signal })
    : undefined;
  bars.stop();
  const results = await write_report(trainer, {
    base_model: flags.model_name_or_path ?? DEFAULT_MODEL,
    train_examples: trains ? train_dataset?.length : undefined,
    eval_examples: evaluation?.predictions.dims[0],
    eval_metrics: evaluation?.metrics,
    confusion:
      evaluation?.label_ids && trainer.model.config.problem_type === "single_label_classification"
        ? confusion_matrix({ predictions: evaluation.predictions, label_ids: evaluation.label_ids })
        : undefined,
  });
  print_metrics(results);
  const { skipped_images: skipped } = trainer;
  if (skipped.length === 0) return;
  const more = skipped.length > MAX_NAMED ? ` and ${skipped.length - MAX_NAMED} more` : "";
  notify(
    `skipped ${skipped.length} images that can't be read: ${skipped.slice(0, MAX_NAMED).join(", ")}${more}.`,
  );
}

/** The images to train and to evaluate on; the latter are split off if they aren't given separately. */
async function open_data(flags: TrainFlags, trains: boolean, seed: number, signal: AbortSignal) {
  const { problem_type, empty_classes } = flags;
  const given_validation = source_of(flags, "validation");
  const source = trains || given_validation === undefined ? training_source(flags) : undefined;
  const options = list_options(flags, signal);
  const all =
    source === undefined
      ? undefined
      : await open_labelled_images(source, { ...options, problem_type, empty_classes });
  const validation_source = given_validation ?? (await source_with_validation(source));
  const split = flags.train_val_split ?? DEFAULT_SPLIT;
  const [rest, validation] =
    validation_source !== undefined || split === 0 || all === undefined
      ? [all, await open_validation(validation_source, all, { ...options, problem_type })]
      : all.split(split, seed, { stratified: flags.stratified ?? false });
  check_labels((rest ?? validation) as LabelledImages, String(source ?? validation_source), flags);
  return {
    train_dataset: rest && limit(rest, flags.max_train_samples, seed),
    eval_dataset: validation && limit(validation, flags.max_eval_samples, seed),
  };
}

type Source = string | readonly string[];

function training_source(flags: TrainFlags): Source {
  const source = source_of(flags, "train");
  if (source !== undefined) return source;
  throw new VitMsnError("INVALID_ARGUMENT", "vit-msn train requires --train-dir or --train-file.", {
    details: { argument: "train_dir" },
  });
}

/** The folder or the lists of a part of the data. @throws VitMsnError INVALID_ARGUMENT if both are given. */
function source_of(flags: TrainFlags, part: "train" | "validation"): Source | undefined {
  const { [`${part}_dir` as const]: folder, [`${part}_file` as const]: files } = flags;
  if (folder === undefined || files === undefined) return folder ?? files;
  throw new VitMsnError("INVALID_ARGUMENT", `Pass --${part}-dir or --${part}-file, not both.`, {
    details: { argument: `${part}_file` },
  });
}

function list_options(flags: TrainFlags, signal: AbortSignal): LabelledImagesOptions {
  const { image_dir, image_column_name, label_column_name, label_separator, unreadable_images } = flags;
  return {
    image_dir,
    image_column_name,
    label_column_name,
    label_separator,
    missing_images: unreadable_images,
    signal,
  };
}

/** Reports what the labels are taken for, if that may not be what is meant. */
function check_labels(
  { problem_type, classes = [] }: LabelledImages,
  source: string,
  flags: TrainFlags,
): void {
  if (problem_type === "single_label_classification") check_classes(classes, source);
  else if (flags.problem_type === undefined)
    notify(`the labels are for ${problem_type}; if they aren't, set --problem-type.`);
}

/** What to evaluate on if the training data has a validation split, as in datasets. */
async function source_with_validation(source: Source | undefined): Promise<Source | undefined> {
  const splits = source === undefined ? [] : await image_splits(source);
  if (splits.includes("validation")) return source;
  if (splits.includes("test")) {
    env.warn(
      `${source}: the test split isn't used, since it is for the final model; to evaluate on it, pass it as --validation-dir.`,
    );
  }
  return undefined;
}

/** Its classes get the indices of the training data's; those without images are reported, not refused. */
async function open_validation(
  source: Source | undefined,
  all: LabelledImages | undefined,
  options: LabelledImagesOptions,
) {
  if (source === undefined) return undefined;
  const splits = await image_splits(source);
  const split = splits.includes("test") && !splits.includes("validation") ? "test" : "validation";
  const { classes, problem_type = options.problem_type } = all ?? {};
  const known = all ? ({ classes, empty_classes: "skip" } as const) : {};
  return open_labelled_images(source, { ...options, ...known, problem_type, split });
}

function limit(data: LabelledImages, count: number | undefined, seed: number): LabelledImages {
  return count === undefined ? data : data.take(count, seed);
}

async function load_model(flags: TrainFlags, data: LabelledImages, seed: number, signal: AbortSignal) {
  const source = flags.model_name_or_path ?? DEFAULT_MODEL;
  const bars = new DownloadBars(flags.quiet === true);
  const options: PretrainedOptions = {
    ...shared_pretrained_options(flags, signal),
    dtype: flags.dtype,
    device: flags.device,
    ignore_mismatched_sizes: flags.ignore_mismatched_sizes,
    progress_callback: bars.callback,
    seed,
  };
  try {
    const processor = await ViTImageProcessor.from_pretrained(flags.image_processor_name ?? source, options);
    const { problem_type, num_labels } = data;
    const classes = data.classes ?? Array.from({ length: num_labels }, (_, i) => `LABEL_${i}`);
    const id2label = Object.fromEntries(classes.map((name, i) => [i, name]));
    const label2id = Object.fromEntries(classes.map((name, i) => [name, i]));
    const config = { id2label, label2id, problem_type };
    const model = await ViTMSNForImageClassification.from_pretrained(source, { ...options, config });
    return { model, processor };
  } finally {
    bars.stop();
  }
}

function early_stopping({ early_stopping_patience }: TrainFlags): TrainerCallback[] {
  return early_stopping_patience === undefined
    ? []
    : [new EarlyStoppingCallback({ early_stopping_patience })];
}
