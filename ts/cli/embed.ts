import { type Command, Option } from "commander";
import { ImageFeatureExtractionPipeline, type Pool, pipeline } from "../index.ts";
import { run_to_file, run_to_sink, type Task } from "./batch/job.ts";
import { type BatchFlags, job_options, output_options, with_batch_options } from "./batch/options.ts";
import { preparation } from "./batch/prepare.ts";
import { json_line } from "./batch/rows.ts";
import { print, RowSink } from "./batch/stdout.ts";
import { is_alive, load, type ModelFlags, model_identity, with_model_options } from "./model_options.ts";
import { json_for_stdout } from "./terminal.ts";

interface EmbedFlags extends ModelFlags, BatchFlags {
  pool: "cls" | "mean";
}

/** `vit-msn embed`: an embedding for each image, printed or written to a file. */
export function add_embed(program: Command, signal: AbortSignal): void {
  const command = program.command("embed");
  command
    .description("print an embedding for each image as JSON lines, or write them to a file")
    .optionsGroup("Embeddings:")
    .addOption(pool_option());
  with_model_options(with_batch_options(command)).action(async (images: string[], flags: EmbedFlags) => {
    process.exitCode = await embed(images, flags, signal, command);
  });
}

export function pool_option(): Option {
  return new Option("--pool <name>", "use the CLS token, or the mean of the patch tokens")
    .choices(["cls", "mean"] satisfies Exclude<Pool, boolean>[])
    .default("cls");
}

async function embed(
  images: string[],
  flags: EmbedFlags,
  signal: AbortSignal,
  command: Command,
): Promise<number> {
  const { pool, quiet = false } = flags;
  const options = job_options(images, flags, quiet, signal, command);
  const output = output_options(flags, { command: "embed", ...model_identity(flags), pool }, command);
  if (output !== undefined) return run_to_file(() => load_extractor(flags, flags, signal), options, output);
  const task = await load_extractor(flags, flags, signal);
  try {
    const sink = new RowSink((row) => print(json_for_stdout(json_line(row))));
    await run_to_sink(task, sink, options);
    return sink.failures === 0 ? 0 : 1;
  } finally {
    await task.dispose();
  }
}

export interface ExtractorOptions {
  pool: "cls" | "mean";
  batchSize: number;
}

export async function load_extractor(
  model: ModelFlags,
  { pool, batchSize: batch_size }: ExtractorOptions,
  signal: AbortSignal,
): Promise<Task> {
  const extractor = await load(model, signal, (options) =>
    pipeline("image-feature-extraction", model.model, options),
  );
  const width = extractor.model.config.hidden_size;
  const { prepare, processor } = preparation(extractor);
  const extract = new ImageFeatureExtractionPipeline(extractor.model, processor, false);
  return {
    settings: extractor.processor.to_dict(),
    prepare,
    shape: { width, has_labels: false },
    async compute(images, signal) {
      const { data } = await extract(images, { pool, batch_size, signal });
      return images.map((_, i) => ({ values: data.subarray(i * width, (i + 1) * width) }));
    },
    is_alive: () => is_alive(extractor.model),
    dispose: () => extractor.dispose(),
  };
}
