import { type Command, Option } from "commander";
import { type FunctionToApply, ImageClassificationPipeline, pipeline } from "../index.ts";
import { run_to_file, run_to_sink, type Task } from "./batch/job.ts";
import {
  type BatchFlags,
  job_options,
  output_options,
  positive_integer,
  with_batch_options,
} from "./batch/options.ts";
import { preparation } from "./batch/prepare.ts";
import { source_name } from "./batch/remote.ts";
import { json_line, type Row } from "./batch/rows.ts";
import { print, RowSink } from "./batch/stdout.ts";
import { is_alive, load, type ModelFlags, model_identity, with_model_options } from "./model_options.ts";
import { json_for_stdout, visible } from "./terminal.ts";

interface ClassifyFlags extends ModelFlags, BatchFlags {
  topK: number;
  functionToApply?: FunctionToApply;
  json?: boolean;
}

/** `vit-msn classify`: the likeliest classes of each image, printed or written to a file. */
export function add_classify(program: Command, signal: AbortSignal): void {
  const command = program.command("classify");
  command
    .description("print the likeliest classes of each image, or write them to a file")
    .optionsGroup("Classes:")
    .option("-k, --top-k <n>", "return the n likeliest classes", positive_integer, 5)
    .addOption(function_to_apply_option())
    .option("--json", "print one JSON object per line instead of a table");
  with_model_options(with_batch_options(command)).action(async (images: string[], flags: ClassifyFlags) => {
    process.exitCode = await classify(images, flags, signal, command);
  });
}

export function function_to_apply_option(): Option {
  return new Option(
    "--function-to-apply <name>",
    "turn logits into scores by this function; default: by the model's problem type",
  ).choices(["softmax", "sigmoid", "none"] satisfies FunctionToApply[]);
}

async function classify(
  images: string[],
  flags: ClassifyFlags,
  signal: AbortSignal,
  command: Command,
): Promise<number> {
  const { topK, functionToApply, quiet = false } = flags;
  const options = job_options(images, flags, quiet, signal, command);
  const identity = {
    command: "classify",
    ...model_identity(flags),
    top_k: topK,
    function_to_apply: functionToApply,
  };
  const output = output_options(flags, identity, command);
  if (output !== undefined) return run_to_file(() => load_classifier(flags, flags, signal), options, output);
  const task = await load_classifier(flags, flags, signal);
  try {
    if (!flags.json) await print(table_heading(images));
    const text_of = flags.json ? (row: Row) => json_for_stdout(json_line(row)) : table_rows(images);
    const sink = new RowSink((row) => print(text_of(row)));
    await run_to_sink(task, sink, options);
    return sink.failures === 0 ? 0 : 1;
  } finally {
    await task.dispose();
  }
}

export interface ClassifierOptions {
  topK: number;
  functionToApply?: FunctionToApply;
  batchSize: number;
}

export async function load_classifier(
  model: ModelFlags,
  { topK: top_k, functionToApply: function_to_apply, batchSize: batch_size }: ClassifierOptions,
  signal: AbortSignal,
): Promise<Task> {
  const classifier = await load(model, signal, (options) =>
    pipeline("image-classification", model.model, options),
  );
  const { prepare, processor } = preparation(classifier);
  const classify = new ImageClassificationPipeline(classifier.model, processor);
  return {
    settings: classifier.processor.to_dict(),
    prepare,
    shape: { width: Math.min(top_k, classifier.model.config.num_labels), has_labels: true },
    async compute(images, signal) {
      const all = await classify(images, { top_k, function_to_apply, batch_size, signal });
      return all.map((results) => ({
        labels: results.map(({ label }) => label),
        values: results.map(({ score }) => score),
      }));
    },
    is_alive: () => is_alive(classifier.model),
    dispose: () => classifier.dispose(),
  };
}

/** The first column is as wide as the longest name given on the command line. */
function column_width(images: readonly string[]): number {
  return images.reduce((width, image) => Math.max(width, visible(source_name(image)).length), "image".length);
}

export function table_heading(images: readonly string[]): string {
  return `${"image".padEnd(column_width(images))}   score  label\n`;
}

export function table_rows(images: readonly string[]): (row: Row) => string {
  const width = column_width(images);
  return ({ image, labels = [], values }) =>
    labels
      .map((label, i) => {
        const name = (i === 0 ? visible(image) : "").padEnd(width);
        return `${name}  ${(values[i] as number).toFixed(4).padStart(6)}  ${visible(label)}\n`;
      })
      .join("");
}
