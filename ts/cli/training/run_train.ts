import { with_locked_folder } from "../../files/index.ts";
import { env, type PretrainedOptions, ViTImageProcessor, ViTMSNForImageClassification } from "../../index.ts";
import {
  confusion_matrix,
  EarlyStoppingCallback,
  ImageFolder,
  reference_transforms,
  Trainer,
  type TrainerCallback,
  TrainingArguments,
  type TrainingOptions,
} from "../../training/index.ts";
import { DownloadBars } from "../progress_bars.ts";
import { write_report } from "../report/write_report.ts";
import { check_classes } from "./classes.ts";
import { checkpoint_to_resume, interrupted, required, stop_on_signal } from "./interruptible_run.ts";
import { TrainingBars } from "./progress_bars.ts";

const DEFAULT_MODEL = "facebook/vit-msn-small";
const DEFAULT_SPLIT = 0.15;
const DEFAULT_SEED = 42;

/** What `vit-msn train` takes besides the options of training itself; the names are those of run_image_classification.py. */
export interface TrainFlags {
  train_dir?: string;
  validation_dir?: string;
  train_val_split?: number;
  max_train_samples?: number;
  max_eval_samples?: number;
  empty_classes?: "error" | "skip";
  unreadable_pictures?: "error" | "skip";
  model_name_or_path?: string;
  image_processor_name?: string;
  model_revision?: string;
  cache_dir?: string;
  local_files_only?: boolean;
  token?: string;
  ignore_mismatched_sizes?: boolean;
  dtype?: "float32" | "float16" | "bfloat16";
  attn_implementation?: "sdpa" | "eager";
  num_threads?: number;
  do_train?: boolean;
  do_eval?: boolean;
  resume_from_checkpoint?: string;
  overwrite_output_dir?: boolean;
  early_stopping_patience?: number;
  quiet?: boolean;
}

/** `vit-msn train`: fine-tunes on folders of pictures and writes model, metrics, figures and a model card. Gives the exit code. */
export async function train(
  flags: TrainFlags,
  options: TrainingOptions,
  signal: AbortSignal,
): Promise<number> {
  const { do_train = true } = flags;
  const output_dir = required(options.output_dir as string | undefined, "output_dir", "train");
  const seed = options.seed ?? DEFAULT_SEED;
  const { train_dataset, eval_dataset } = await open_folders(flags, do_train, seed);
  const args = new TrainingArguments(options);
  return with_locked_folder(output_dir, signal, () =>
    train_into(output_dir, { flags, args, seed, train_dataset, eval_dataset }, signal),
  );
}

interface TrainRun {
  flags: TrainFlags;
  args: TrainingArguments;
  seed: number;
  train_dataset: ImageFolder | undefined;
  eval_dataset: ImageFolder | undefined;
}

/** The output folder is held until the report is written. */
async function train_into(
  output_dir: string,
  { flags, args, seed, train_dataset, eval_dataset }: TrainRun,
  signal: AbortSignal,
): Promise<number> {
  const { do_train = true } = flags;
  const resume = do_train ? await checkpoint_to_resume(output_dir, flags) : undefined;
  const { model, processor } = await load_model(
    flags,
    (train_dataset ?? eval_dataset)?.classes ?? [],
    seed,
    signal,
  );
  const stop = stop_on_signal(signal);
  try {
    const transforms = reference_transforms(processor);
    const bars = new TrainingBars(flags.quiet === true);
    const trainer = new Trainer({
      model,
      args,
      train_dataset,
      eval_dataset,
      image_processor: processor,
      train_transform: transforms.train,
      eval_transform: transforms.eval,
      unreadable_pictures: flags.unreadable_pictures,
      callbacks: [...early_stopping(flags), bars, stop.callback],
    });
    try {
      if (do_train) {
        const { metrics } = await trainer.train(resume);
        if (stop.has_stopped()) return interrupted(trainer, signal);
        await trainer.save_model();
        await trainer.save_metrics("train", metrics);
        await trainer.save_state();
      }
      const evaluates = (flags.do_eval ?? true) && eval_dataset !== undefined;
      const evaluation = evaluates
        ? await trainer.predict(eval_dataset, { metric_key_prefix: "eval", signal })
        : undefined;
      bars.stop();
      const results = await write_report(trainer, {
        base_model: flags.model_name_or_path ?? DEFAULT_MODEL,
        train_examples: do_train ? train_dataset?.length : undefined,
        eval_examples: evaluation?.predictions.dims[0],
        eval_metrics: evaluation?.metrics,
        confusion:
          evaluation?.label_ids &&
          confusion_matrix({ predictions: evaluation.predictions, label_ids: evaluation.label_ids }),
      });
      for (const [name, value] of Object.entries(results)) process.stdout.write(`${name} = ${value}\n`);
      return 0;
    } finally {
      bars.stop();
    }
  } finally {
    stop.forget();
    await model.dispose();
  }
}

/** The images to learn from and to evaluate on; the latter are split off where they have no folder of their own. */
async function open_folders(flags: TrainFlags, do_train: boolean, seed: number) {
  const { empty_classes } = flags;
  const folder =
    do_train || flags.validation_dir === undefined
      ? required(flags.train_dir, "train_dir", "train")
      : undefined;
  const all = folder === undefined ? undefined : await ImageFolder.open(folder, { empty_classes });
  const validation_dir = flags.validation_dir ?? (await folder_with_validation(folder));
  const split = flags.train_val_split ?? DEFAULT_SPLIT;
  const [rest, held_out] =
    validation_dir !== undefined || split === 0 || all === undefined
      ? [all, await open_validation(validation_dir, all)]
      : all.split(split, seed);
  check_classes((rest ?? held_out)?.classes ?? [], folder ?? String(validation_dir));
  return {
    train_dataset: rest && limit(rest, flags.max_train_samples, seed),
    eval_dataset: held_out && limit(held_out, flags.max_eval_samples, seed),
  };
}

/** Where train_dir holds a validation split beside the one to learn from, that is what to evaluate on, as in datasets. */
async function folder_with_validation(train_dir: string | undefined): Promise<string | undefined> {
  const splits = train_dir === undefined ? [] : await ImageFolder.splits(train_dir);
  if (splits.includes("validation")) return train_dir;
  if (splits.includes("test")) {
    env.warn(
      `${train_dir}: the test split isn't used, since it is for the final model; to evaluate on it, give it as --validation-dir.`,
    );
  }
  return undefined;
}

/** Its classes have the indices of the training data's; one that has no image there is reported, not an error. */
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
    revision: flags.model_revision,
    cache_dir: flags.cache_dir,
    local_files_only: flags.local_files_only,
    token: flags.token,
    dtype: flags.dtype,
    attn_implementation: flags.attn_implementation,
    num_threads: flags.num_threads,
    ignore_mismatched_sizes: flags.ignore_mismatched_sizes,
    progress_callback: bars.callback,
    seed,
    signal,
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
