import { with_locked_folder } from "../../files/index.ts";
import { env, type PretrainedOptions, ViTImageProcessor, ViTMSNForImageClassification } from "../../index.ts";
import {
  compose,
  confusion_matrix,
  EarlyStoppingCallback,
  ImageFolder,
  rand_augment,
  reference_transforms,
  Trainer,
  type TrainerCallback,
  TrainingArguments,
  type TrainingOptions,
} from "../../training/index.ts";
import { DownloadBars } from "../progress_bars.ts";
import { write_report } from "../report/write_report.ts";
import { check_classes } from "./classes.ts";
import {
  checkpoint_to_resume,
  interrupted,
  print_metrics,
  required,
  stop_on_signal,
} from "./interruptible_run.ts";
import { TrainingBars } from "./progress_bars.ts";
import { type SharedFlags, shared_pretrained_options } from "./shared_options.ts";

const DEFAULT_MODEL = "facebook/vit-msn-small";
const DEFAULT_SPLIT = 0.15;
const DEFAULT_SEED = 42;

/** The options of `vit-msn train` in addition to those of the library, named as in run_image_classification.py. */
export interface TrainFlags extends SharedFlags {
  train_dir?: string;
  validation_dir?: string;
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

/** `vit-msn train`: fine-tunes on folders of images; writes the model, metrics, figures and a model card. @returns the exit code. */
export async function train(
  flags: TrainFlags,
  options: TrainingOptions,
  signal: AbortSignal,
): Promise<number> {
  const { do_train: trains = true } = flags;
  const output_dir = required(options.output_dir as string | undefined, "output_dir", "train");
  const seed = options.seed ?? DEFAULT_SEED;
  const { train_dataset, eval_dataset } = await open_folders(flags, trains, seed);
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
  train_dataset: ImageFolder | undefined;
  eval_dataset: ImageFolder | undefined;
}

/** Runs while the output folder is locked. */
async function train_into(output_dir: string, run: TrainRun, signal: AbortSignal): Promise<number> {
  const { flags, args, seed, train_dataset, eval_dataset } = run;
  const resume = run.trains ? await checkpoint_to_resume(output_dir, flags) : undefined;
  const classes = (train_dataset ?? eval_dataset)?.classes ?? [];
  const { model, processor } = await load_model(flags, classes, seed, signal);
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
      callbacks: [...early_stopping(flags), bars, stop.callback],
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
      evaluation?.label_ids &&
      confusion_matrix({ predictions: evaluation.predictions, label_ids: evaluation.label_ids }),
  });
  print_metrics(results);
}

/** The images to train and to evaluate on; the latter are split off if they have no separate folder. */
async function open_folders(flags: TrainFlags, trains: boolean, seed: number) {
  const { empty_classes } = flags;
  const folder =
    trains || flags.validation_dir === undefined
      ? required(flags.train_dir, "train_dir", "train")
      : undefined;
  const all = folder === undefined ? undefined : await ImageFolder.open(folder, { empty_classes });
  const validation_dir = flags.validation_dir ?? (await folder_with_validation(folder));
  const split = flags.train_val_split ?? DEFAULT_SPLIT;
  const [rest, validation] =
    validation_dir !== undefined || split === 0 || all === undefined
      ? [all, await open_validation(validation_dir, all)]
      : all.split(split, seed, { stratified: flags.stratified ?? false });
  check_classes((rest ?? validation)?.classes ?? [], folder ?? String(validation_dir));
  return {
    train_dataset: rest && limit(rest, flags.max_train_samples, seed),
    eval_dataset: validation && limit(validation, flags.max_eval_samples, seed),
  };
}

/** The folder to evaluate on if train_dir has a validation split, as in datasets. */
async function folder_with_validation(train_dir: string | undefined): Promise<string | undefined> {
  const splits = train_dir === undefined ? [] : await ImageFolder.splits(train_dir);
  if (splits.includes("validation")) return train_dir;
  if (splits.includes("test")) {
    env.warn(
      `${train_dir}: the test split isn't used, since it is for the final model; to evaluate on it, pass it as --validation-dir.`,
    );
  }
  return undefined;
}

/** Its classes get the indices of the training data's; those without images are reported, not refused. */
async function open_validation(validation_dir: string | undefined, all: ImageFolder | undefined) {
  if (validation_dir === undefined) return undefined;
  const splits = await ImageFolder.splits(validation_dir);
  const split = splits.includes("test") && !splits.includes("validation") ? "test" : "validation";
  const classes = all ? ({ classes: all.classes, empty_classes: "skip" } as const) : {};
  return ImageFolder.open(validation_dir, { ...classes, split });
}

function limit(folder: ImageFolder, count: number | undefined, seed: number): ImageFolder {
  return count === undefined ? folder : folder.take(count, seed);
}

async function load_model(flags: TrainFlags, classes: readonly string[], seed: number, signal: AbortSignal) {
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
    const id2label = Object.fromEntries(classes.map((name, i) => [i, name]));
    const label2id = Object.fromEntries(classes.map((name, i) => [name, i]));
    const config = { id2label, label2id, problem_type: "single_label_classification" } as const;
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
