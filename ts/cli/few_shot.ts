import type { SingleBar } from "cli-progress";
import { type Command, Option } from "commander";
import { FewShotImageClassificationPipeline, msn_evaluation_processor } from "../few_shot.ts";
import {
  type Evaluation,
  type FeatureKind,
  type FewShotMethod,
  type FitOptions,
  type FitReport,
  type LearningProgress,
  pipeline,
  RawImage,
  VitMsnError,
} from "../index.ts";
import {
  type Example,
  image_splits,
  open_labelled_images,
  read_image,
  type Split,
} from "../training/index.ts";
import { positive_integer } from "./batch/options.ts";
import { json_line, type Row } from "./batch/rows.ts";
import { print } from "./batch/stdout.ts";
import { from_stream } from "./batch/streams.ts";
import { table_heading, table_rows } from "./classify.ts";
import { load, type ModelFlags, with_model_options } from "./model_options.ts";
import { start_counting_bar } from "./progress_bars.ts";
import { json_for_stdout, notify, visible } from "./terminal.ts";
import { check_classes } from "./training/classes.ts";

interface FewShotFlags extends ModelFlags {
  teach?: string;
  head?: string;
  eval?: string;
  leaveOneOut?: boolean;
  shots?: number[];
  seeds: number;
  save?: string;
  export?: string;
  method?: FewShotMethod;
  penalty?: FitOptions["penalty"];
  intercept?: boolean;
  features?: FeatureKind;
  preprocessing: "model" | "paper";
  normalize: boolean;
  batchSize: number;
  topK: number;
  json?: boolean;
}

/** Accuracies with `shots` images of each label, one for each draw; `std` is the sample's. */
interface LowShot {
  shots: number;
  accuracies: number[];
  mean: number;
  std: number;
}

const METHODS = ["logistic_regression", "nearest_centroid", "knn"] as const satisfies FewShotMethod[];
const FEATURES = [
  "cls_before_norm",
  "cls",
  "mean",
  "mean_before_norm",
  "cls_mean",
] as const satisfies FeatureKind[];

const EXAMPLES = `
Examples:
  # evaluate on the images in pets/cat, pets/dog, ...
  vit-msn few-shot --teach pets --leave-one-out
  # how many images does a label need?
  vit-msn few-shot --teach pets --shots 1,2,5 --seeds 10
  # learn from one folder, evaluate on another, and save the head
  vit-msn few-shot --teach pets --eval others --save head
  # classify with a saved head
  vit-msn few-shot --head head photo.jpg
  # add images to a saved head
  vit-msn few-shot --head head --teach more --save head
  # write a checkpoint for "vit-msn classify" and transformers
  vit-msn few-shot --head head --export pets-model`;

/** `vit-msn few-shot`: classification by the user's own labels, learned from a few images each. */
export function add_few_shot(program: Command, signal: AbortSignal): void {
  const command = program
    .command("few-shot")
    .description("learn labels from a few images each, then evaluate, save, export or classify")
    .argument("[images...]", 'image files or http(s) URLs to classify; "-" reads one from standard input')
    .addHelpText("after", EXAMPLES);
  with_learning_options(with_action_options(command));
  with_model_options(command).action(async (images: string[], flags: FewShotFlags) => {
    check_flags(images, flags, command);
    process.exitCode = await few_shot(images, flags, signal);
  });
}

function with_action_options(command: Command): Command {
  return command
    .optionsGroup("Actions:")
    .option(
      "--teach <dir>",
      "learn from the images in this folder, which has a folder for each label, or in this list (.csv, .jsonl, .parquet, .tar)",
    )
    .option("--head <dir>", "load a head that --save wrote; --teach then adds images to it")
    .option("--eval <dir>", "evaluate on the images in this folder or list")
    .option("--leave-one-out", "evaluate on each image with a head fitted to all others")
    .option(
      "--shots <n,...>",
      "evaluate heads fitted to n images of each label, drawn at random, on all other images",
      counts,
    )
    .option("--seeds <n>", "repeat --shots with n draws", positive_integer, 5)
    .option("--save <dir>", "save the head: few_shot.json and few_shot.safetensors")
    .option("--export <dir>", "write a complete model with the labels as its classes");
}

function with_learning_options(command: Command): Command {
  return command
    .optionsGroup("Learning:")
    .addOption(
      new Option("--method <name>", "learn by this method").choices(METHODS).default("logistic_regression"),
    )
    .option(
      "--penalty <lambda>",
      'penalty of logistic regression: a number, one of MSN\'s ("few", "percent", "code"), or "auto" for ' +
        "cross-validation; default: auto if every label has two images, else few",
      penalty,
    )
    .option("--intercept", "fit a bias for each label")
    .addOption(
      new Option("--features <name>", "take each image's features from here")
        .choices(FEATURES)
        .default("cls_before_norm"),
    )
    .addOption(
      new Option(
        "--preprocessing <name>",
        "the model's image processor, or the MSN paper's: resize, centre crop",
      )
        .choices(["model", "paper"])
        .default("model"),
    )
    .option("--no-normalize", "don't centre features and scale them to length 1")
    .option("-b, --batch-size <n>", "compute up to n images together", positive_integer, 8)
    .optionsGroup("Labels:")
    .option("-k, --top-k <n>", "return the n likeliest labels", positive_integer, 5)
    .option("--json", "print JSON lines instead of text");
}

/** Positive integers, with commas between them. */
function counts(text: string): number[] {
  return text.split(",").map(positive_integer);
}

/** A number, "auto" or a name, which fit() checks. */
function penalty(text: string): FitOptions["penalty"] {
  const value = Number(text);
  return Number.isNaN(value) ? (text as FitOptions["penalty"]) : value;
}

/** @throws CommanderError if there is nothing to learn from, or nothing to do. */
function check_flags(images: readonly string[], flags: FewShotFlags, command: Command): void {
  if (flags.teach === undefined && flags.head === undefined)
    command.error(
      "error: few-shot requires --teach <dir>, with a folder for each label, or --head <dir>, written by --save",
    );
  const { eval: evaluated, leaveOneOut, shots, save, export: exported } = flags;
  const has_action = [evaluated, leaveOneOut, shots, save, exported].some((flag) => flag !== undefined);
  if (images.length === 0 && !has_action)
    command.error(
      "error: few-shot requires images to classify, or --eval, --leave-one-out, --shots, --save or --export",
    );
}

async function few_shot(images: string[], flags: FewShotFlags, signal: AbortSignal): Promise<number> {
  const { features, normalize, preprocessing } = flags;
  const teach = await load(flags, signal, async (options) => {
    const teach = await pipeline("few-shot-image-classification", flags.model, {
      ...options,
      features,
      normalize,
    });
    if (preprocessing === "model") return teach;
    return new FewShotImageClassificationPipeline(teach.model, msn_evaluation_processor(teach.model.config), {
      features,
      normalize,
    });
  });
  const session = new Session(teach, flags, signal);
  try {
    return await session.run(images);
  } finally {
    session.stop();
    await teach.dispose();
  }
}

/** Loads or teaches a head, then evaluates, saves, exports and classifies, as requested. */
class Session {
  readonly #teach: FewShotImageClassificationPipeline;
  readonly #flags: FewShotFlags;
  readonly #signal: AbortSignal;
  #exit_code = 0;
  #bar: SingleBar | undefined;
  #stage = "";

  constructor(teach: FewShotImageClassificationPipeline, flags: FewShotFlags, signal: AbortSignal) {
    this.#teach = teach;
    this.#flags = flags;
    this.#signal = signal;
  }

  async run(images: string[]): Promise<number> {
    const { head, teach, eval: evaluated, leaveOneOut, shots = [], save, export: exported } = this.#flags;
    const signal = this.#signal;
    if (head !== undefined) await this.#teach.load(head, { signal });
    if (teach !== undefined) {
      await this.#add(teach);
      this.#report({ fit: await this.#fit() });
    }
    if (leaveOneOut)
      this.#report({
        leave_one_out: await this.#teach.leave_one_out({ signal, progress_callback: this.#progress }),
      });
    for (const n of shots) this.#report({ low_shot: await this.#low_shot(n) });
    if (evaluated !== undefined) this.#report({ evaluation: await this.#evaluate(evaluated) });
    if (save !== undefined) await this.#teach.save(save, { signal });
    if (exported !== undefined) await this.#teach.export_model(exported, { signal });
    this.stop();
    return Math.max(this.#exit_code, await this.#classify(images));
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  async #add(folder: string): Promise<void> {
    for await (const { label, sound } of this.#batches_of(folder, "train"))
      await this.#teach.add(label, sound, { batch_size: sound.length, signal: this.#signal });
  }

  #fit(): Promise<FitReport> {
    const { method, penalty, intercept } = this.#flags;
    return this.#teach.fit({
      method,
      penalty,
      intercept,
      signal: this.#signal,
      progress_callback: this.#progress,
    });
  }

  async #low_shot(shots: number): Promise<LowShot> {
    const { method, penalty, intercept, seeds } = this.#flags;
    const draws = await this.#teach.low_shot({
      shots,
      seeds,
      method,
      penalty,
      intercept,
      signal: this.#signal,
    });
    const accuracies = draws.map(({ accuracy }) => accuracy);
    const mean = accuracies.reduce((a, b) => a + b, 0) / seeds;
    const squares = accuracies.reduce((sum, accuracy) => sum + (accuracy - mean) ** 2, 0);
    return { shots, accuracies, mean, std: Math.sqrt(squares / Math.max(1, seeds - 1)) };
  }

  async #evaluate(folder: string): Promise<Evaluation> {
    let sum: Evaluation | undefined;
    const splits = await image_splits(folder);
    const split = splits.includes("test") ? "test" : "validation";
    for await (const { label, sound } of this.#batches_of(folder, split)) {
      const options = { batch_size: sound.length, signal: this.#signal };
      const part = await this.#teach.evaluate(new Map([[label, sound]]), options);
      sum = sum === undefined ? part : add_up(sum, part);
    }
    if (sum !== undefined) return sum;
    throw new VitMsnError("INVALID_ARGUMENT", `${folder}: none of its images could be read.`);
  }

  /** The readable images of a folder with a folder for each label, batch by batch. */
  async *#batches_of(source: string, split: Split): AsyncGenerator<{ label: string; sound: RawImage[] }> {
    const data = await open_labelled_images(source, {
      empty_classes: "skip",
      split,
      missing_images: "skip",
      signal: this.#signal,
    });
    if (data.problem_type !== "single_label_classification")
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `${source} has labels for ${data.problem_type}; few-shot learning needs one class for each image.`,
      );
    const { classes = [], examples } = data;
    // A loaded head has other classes, too, and evaluation may be on a single class.
    if (split === "train" && this.#flags.head === undefined) check_classes(classes, source);
    this.#counted = { done: 0, total: examples.length };
    for (const label of classes) {
      const images = examples.flatMap((example) => (example.label === label ? (example.image ?? []) : []));
      for (let i = 0; i < images.length; i += this.#flags.batchSize) {
        const sound = await this.#read(images.slice(i, i + this.#flags.batchSize));
        if (sound.length > 0) yield { label, sound };
      }
    }
  }

  #counted = { done: 0, total: 0 };

  /** Reads images; those that can't be read are reported and skipped. */
  async #read(listed: readonly NonNullable<Example["image"]>[]): Promise<RawImage[]> {
    const images: RawImage[] = [];
    const read = (image: NonNullable<Example["image"]>) => read_image(image, { signal: this.#signal });
    const code = await for_each_image(listed, read, async (_, image) => {
      images.push(image);
    });
    this.#exit_code = Math.max(this.#exit_code, code);
    this.#counted.done += listed.length;
    this.#progress({ status: "features", ...this.#counted });
    return images;
  }

  readonly #progress = ({ status, done, total }: LearningProgress): void => {
    if (this.#stage !== status) this.stop();
    this.#stage = status;
    this.#bar ??= start_counting_bar(this.#flags.quiet === true, STAGES[status], total);
    this.#bar?.setTotal(total);
    this.#bar?.update(done);
  };

  #report(what: {
    fit?: FitReport;
    leave_one_out?: Evaluation;
    low_shot?: LowShot;
    evaluation?: Evaluation;
  }): void {
    this.stop();
    if (this.#flags.json) process.stdout.write(json_for_stdout(`${JSON.stringify(what)}\n`));
    else if (what.fit) notify(describe_fit(what.fit));
    if (this.#flags.json) return;
    if (what.leave_one_out) process.stdout.write(describe("leave-one-out", what.leave_one_out));
    if (what.low_shot) process.stdout.write(describe_low_shot(what.low_shot));
    if (what.evaluation) process.stdout.write(describe("evaluation", what.evaluation));
  }

  async #classify(images: string[]): Promise<number> {
    if (images.length === 0) return 0;
    const { json, topK: top_k } = this.#flags;
    if (!json) await print(table_heading(images));
    const format = json ? (row: Row) => json_for_stdout(json_line(row)) : table_rows(images);
    const read = (name: string) => read_named(name, this.#signal);
    return for_each_image(images, read, async (name, image) => {
      const results = await this.#teach(image, { top_k, signal: this.#signal });
      const labels = results.map(({ label }) => label);
      await print(format({ image: name, labels, values: results.map(({ score }) => score) }));
    });
  }
}

/** Runs `body` for every image; those that fail are reported and don't stop the others. @returns the exit code. */
async function for_each_image<Listed>(
  images: readonly Listed[],
  read: (listed: Listed) => Promise<RawImage>,
  body: (listed: Listed, image: RawImage) => Promise<void>,
): Promise<number> {
  let exit_code = 0;
  for (const listed of images) {
    try {
      await body(listed, await read(listed));
    } catch (error) {
      if (!(error instanceof VitMsnError) || error.code === "ABORTED" || error.code === "ENGINE_DEAD")
        throw error;
      notify(`${error.message} [${error.code}]`);
      exit_code = 1;
    }
  }
  return exit_code;
}

async function read_named(name: string, signal: AbortSignal): Promise<RawImage> {
  if (name !== "-") return RawImage.read(name, { signal });
  return from_stream("-", () => process.stdin).read({ signal });
}

const STAGES: Record<LearningProgress["status"], string> = {
  features: "images",
  fit: "steps",
  cross_validation: "cross-validation",
  leave_one_out: "leave-one-out",
};

function add_up(a: Evaluation, b: Evaluation): Evaluation {
  const [correct, total] = [a.correct + b.correct, a.total + b.total];
  const confusion = a.confusion.map((row, i) =>
    row.map((count, j) => count + (b.confusion[i]?.[j] as number)),
  );
  return { accuracy: correct / total, correct, total, labels: a.labels, confusion };
}

function describe_fit(report: FitReport): string {
  const { method, labels, penalty, train_accuracy } = report;
  const lambda = penalty === undefined ? "" : `, penalty ${penalty}`;
  return (
    `${method} on ${report.images} images with ${labels.length} labels${lambda}; ` +
    `training accuracy ${percent(train_accuracy)}.`
  );
}

function describe_low_shot({ shots, accuracies, mean, std }: LowShot): string {
  const images = shots === 1 ? "image" : "images";
  return `${shots} ${images} of each label: ${percent(mean)} ± ${percent(std)} over ${accuracies.length} draws\n`;
}

function describe(what: string, { accuracy, correct, total, labels: raw, confusion }: Evaluation): string {
  const labels = raw.map(visible);
  const width = Math.max(...labels.map((label) => label.length));
  const lines = labels.map((label, i) => {
    const row = confusion[i] as number[];
    const count = row.reduce((a, b) => a + b, 0);
    if (count === 0) return `  ${label.padEnd(width)}  no images`;
    const mistakes = row
      .map((wrong, j) => ({ wrong, taken_for: labels[j] }))
      .filter(({ wrong }, j) => j !== i && wrong > 0)
      .sort((a, b) => b.wrong - a.wrong)
      .map(({ wrong, taken_for }) => `${taken_for} ${wrong}`);
    const right = percent((row[i] as number) / count).padStart(6);
    return `  ${label.padEnd(width)}  ${right} of ${count}${mistakes.length > 0 ? `; taken for ${mistakes.join(", ")}` : ""}`;
  });
  return `${what}: ${percent(accuracy)} (${correct} of ${total})\n${lines.join("\n")}\n`;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}
