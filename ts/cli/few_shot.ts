import type { SingleBar } from "cli-progress";
import { type Command, Option } from "commander";
import {
  type Evaluation,
  type FeatureKind,
  type FewShotImageClassificationPipeline,
  type FewShotMethod,
  type FitOptions,
  type FitReport,
  type LearningProgress,
  pipeline,
  RawImage,
  VitMsnError,
} from "../index.ts";
import { ImageFolder, type Split } from "../training/index.ts";
import { whole_number } from "./batch/options.ts";
import { json_line } from "./batch/rows.ts";
import { print } from "./batch/stdout.ts";
import { from_stream } from "./batch/streams.ts";
import { table_heading, table_rows } from "./classify.ts";
import { load, type ModelFlags, with_model_options } from "./model_options.ts";
import { start_counting_bar } from "./progress_bars.ts";
import { say, visible } from "./terminal.ts";
import { check_classes } from "./training/classes.ts";

interface FewShotFlags extends ModelFlags {
  teach?: string;
  head?: string;
  eval?: string;
  leaveOneOut?: boolean;
  save?: string;
  export?: string;
  method?: FewShotMethod;
  penalty?: FitOptions["penalty"];
  intercept?: boolean;
  features?: FeatureKind;
  normalize: boolean;
  batchSize: number;
  topK: number;
  json?: boolean;
}

const EXAMPLES = `
Examples:
  vit-msn few-shot --teach pets --leave-one-out            pets/cat/*.jpg, pets/dog/*.jpg, ...
  vit-msn few-shot --teach pets --eval others --save head  and keep what was taught
  vit-msn few-shot --head head photo.jpg                   use it
  vit-msn few-shot --head head --teach more --save head    teach it more
  vit-msn few-shot --head head --export pets-model         a checkpoint for "vit-msn classify" and transformers`;

/** `vit-msn few-shot`: labels of one's own from a few pictures each. */
export function add_few_shot(program: Command, signal: AbortSignal): void {
  const command = program.command("few-shot");
  with_model_options(
    command.argument(
      "[image...]",
      'picture files or http(s) URLs to classify; "-" reads one from standard input',
    ),
  )
    .description("teach labels of your own from a few pictures each, then evaluate, save, export or classify")
    .option("--teach <dir>", "learn from a folder of class sub-folders")
    .option("--head <dir>", "start from what --save wrote; with --teach, its pictures are added")
    .option("--eval <dir>", "evaluate on a folder of class sub-folders")
    .option("--leave-one-out", "evaluate on each picture by a head taught with all others")
    .option("--save <dir>", "write what was taught: few_shot.json and few_shot.safetensors")
    .option("--export <dir>", "write a whole model with the labels as its classes")
    .addOption(
      new Option("--method <name>", "how to learn")
        .choices(["logistic_regression", "nearest_centroid", "knn"])
        .default("logistic_regression"),
    )
    .option(
      "--penalty <lambda>",
      'of logistic regression: a number, "few", "percent", "code" (MSN\'s), or "auto" (cross-validation); default by the number of pictures',
      penalty,
    )
    .option("--intercept", "give each label a bias")
    .addOption(
      new Option("--features <name>", "where a picture's feature is read")
        .choices(["cls_before_norm", "cls", "mean", "mean_before_norm"])
        .default("cls_before_norm"),
    )
    .option("--no-normalize", "don't centre features and scale them to length 1")
    .option("-b, --batch-size <n>", "pictures computed together", whole_number, 8)
    .option("-k, --top-k <n>", "labels to show", whole_number, 5)
    .option("--json", "JSON lines instead of text")
    .addHelpText("after", EXAMPLES)
    .action(async (images: string[], flags: FewShotFlags) => {
      check_flags(images, flags, command);
      process.exitCode = await few_shot(images, flags, signal);
    });
}

/** λ: a number, "auto" or a name, which fit() checks. */
function penalty(text: string): FitOptions["penalty"] {
  const value = Number(text);
  return Number.isNaN(value) ? (text as FitOptions["penalty"]) : value;
}

/** Ends the command where nothing is taught, or nothing comes of it. */
function check_flags(images: readonly string[], flags: FewShotFlags, command: Command): void {
  if (flags.teach === undefined && flags.head === undefined)
    command.error(
      "error: few-shot needs --teach DIR, a folder of class sub-folders, or --head DIR, which --save wrote",
    );
  const { eval: evaluated, leaveOneOut, save, export: exported } = flags;
  const has_aim = [evaluated, leaveOneOut, save, exported].some((flag) => flag !== undefined);
  if (images.length === 0 && !has_aim)
    command.error(
      "error: few-shot needs pictures to classify, or --eval, --leave-one-out, --save or --export",
    );
}

async function few_shot(images: string[], flags: FewShotFlags, signal: AbortSignal): Promise<number> {
  const teach = await load(flags, signal, (options) =>
    pipeline("few-shot-image-classification", flags.model, {
      ...options,
      features: flags.features,
      normalize: flags.normalize,
    }),
  );
  const session = new Session(teach, flags, signal);
  try {
    return await session.run(images);
  } finally {
    session.stop();
    await teach.dispose();
  }
}

/** Teaches or loads, then evaluates, saves, exports and classifies, whichever is asked for. */
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
    const { head, teach, eval: evaluated, leaveOneOut, save, export: exported } = this.#flags;
    const signal = this.#signal;
    if (head !== undefined) await this.#teach.load(head, { signal });
    if (teach !== undefined) {
      await this.#add(teach);
      this.#tell({ fit: await this.#fit() });
    }
    if (leaveOneOut)
      this.#tell({
        leave_one_out: await this.#teach.leave_one_out({ signal, progress_callback: this.#progress }),
      });
    if (evaluated !== undefined) this.#tell({ evaluation: await this.#evaluate(evaluated) });
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

  async #evaluate(folder: string): Promise<Evaluation> {
    let sum: Evaluation | undefined;
    const splits = await ImageFolder.splits(folder);
    const split = splits.includes("test") ? "test" : "validation";
    for await (const { label, sound } of this.#batches_of(folder, split)) {
      const options = { batch_size: sound.length, signal: this.#signal };
      const part = await this.#teach.evaluate(new Map([[label, sound]]), options);
      sum = sum === undefined ? part : add_up(sum, part);
    }
    if (sum !== undefined) return sum;
    throw new VitMsnError("INVALID_ARGUMENT", `${folder}: none of its pictures could be read.`);
  }

  /** The readable pictures of a folder of class sub-folders, batch by batch. */
  async *#batches_of(folder: string, split: Split): AsyncGenerator<{ label: string; sound: RawImage[] }> {
    const { classes, examples } = await ImageFolder.open(folder, { empty_classes: "skip", split });
    // A head that more is added to has classes of its own, and evaluation may be on one.
    if (split === "train" && this.#flags.head === undefined) check_classes(classes, folder);
    this.#counted = { done: 0, total: examples.length };
    for (const label of classes) {
      const files = examples.filter((example) => example.label === label).map(({ image }) => image as string);
      for (let i = 0; i < files.length; i += this.#flags.batchSize) {
        const sound = await this.#read(files.slice(i, i + this.#flags.batchSize));
        if (sound.length > 0) yield { label, sound };
      }
    }
  }

  #counted = { done: 0, total: 0 };

  /** Reads picture files; one that can't be read is told and left out. */
  async #read(names: readonly string[]): Promise<RawImage[]> {
    const images: RawImage[] = [];
    const code = await for_each_image(names, this.#signal, async (_, image) => {
      images.push(image);
    });
    this.#exit_code = Math.max(this.#exit_code, code);
    this.#counted.done += names.length;
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

  #tell(what: { fit?: FitReport; leave_one_out?: Evaluation; evaluation?: Evaluation }): void {
    this.stop();
    if (this.#flags.json) process.stdout.write(`${JSON.stringify(what)}\n`);
    else if (what.fit) say(describe_fit(what.fit));
    if (this.#flags.json) return;
    if (what.leave_one_out) process.stdout.write(describe("leave-one-out", what.leave_one_out));
    if (what.evaluation) process.stdout.write(describe("evaluation", what.evaluation));
  }

  async #classify(images: string[]): Promise<number> {
    if (images.length === 0) return 0;
    const { json, topK: top_k } = this.#flags;
    if (!json) await print(table_heading(images));
    const format = json ? json_line : table_rows(images);
    return for_each_image(images, this.#signal, async (image, picture) => {
      const results = await this.#teach(picture, { top_k, signal: this.#signal });
      const labels = results.map(({ label }) => label);
      await print(format({ image, labels, values: results.map(({ score }) => score) }));
    });
  }
}

/** Runs `body` for every picture; one that fails is told and doesn't stop the others. Gives the exit code. */
async function for_each_image(
  images: readonly string[],
  signal: AbortSignal,
  body: (name: string, image: RawImage) => Promise<void>,
): Promise<number> {
  let exit_code = 0;
  for (const name of images) {
    try {
      await body(name, await read_image(name, signal));
    } catch (error) {
      if (!(error instanceof VitMsnError) || error.code === "ABORTED" || error.code === "ENGINE_DEAD")
        throw error;
      say(`${error.message} [${error.code}]`);
      exit_code = 1;
    }
  }
  return exit_code;
}

async function read_image(name: string, signal: AbortSignal): Promise<RawImage> {
  if (name !== "-") return RawImage.read(name, { signal });
  return from_stream("-", () => process.stdin, signal).read(signal);
}

const STAGES: Record<LearningProgress["status"], string> = {
  features: "pictures",
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

function describe_fit({ method, labels, pictures, penalty, train_accuracy }: FitReport): string {
  const lambda = penalty === undefined ? "" : `, penalty ${penalty}`;
  return (
    `${method} on ${pictures} pictures of ${labels.length} labels${lambda}; ` +
    `${percent(train_accuracy)} of them right.`
  );
}

function describe(what: string, { accuracy, correct, total, labels: raw, confusion }: Evaluation): string {
  const labels = raw.map(visible);
  const width = Math.max(...labels.map((label) => label.length));
  const lines = labels.map((label, i) => {
    const row = confusion[i] as number[];
    const count = row.reduce((a, b) => a + b, 0);
    if (count === 0) return `  ${label.padEnd(width)}  no pictures`;
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
