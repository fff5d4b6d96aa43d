import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { version } from "../../../package.json";
import { type Lock, make_folder, SkippedFiles, with_lock } from "../../files/index.ts";
import { RawImage, VitMsnError } from "../../index.ts";
import { notify } from "../terminal.ts";
import { FORMATS, type FormatName } from "./formats.ts";
import {
  check_identity,
  check_probe,
  type Identity,
  type Progress,
  type Reached,
  refusal,
} from "./journal.ts";
import { unreadable } from "./listed_image.ts";
import { failures_path, lock_path, Output, output_file, text_too_long } from "./output.ts";
import { RunProgress } from "./progress.ts";
import { source_name } from "./remote.ts";
import { check_end, with_earlier } from "./retry.ts";
import type { Format, RowShape } from "./rows.ts";
import { type BatchOptions, type Computation, type Outcome, run_batches, type Sink } from "./run_batches.ts";
import { type Selected, Selection, SourcesChanged } from "./selection.ts";
import type { Shard } from "./shard.ts";
import { can_be_counted, list_images, type Sources } from "./sources.ts";

/** Exit codes of a completed run. */
export const DONE = 0;
/** Some images failed; all others were computed and written. */
export const DONE_BUT_FAILURES = 3;

/** A loaded model and what it computes for images. */
export interface Task extends Computation {
  /** Those of the image processor. */
  settings: Record<string, unknown>;
  shape: RowShape;
  /** Whether the engine still runs; its Worker may die while it is idle. */
  is_alive(): boolean;
  dispose(): Promise<void>;
}

export interface JobOptions extends BatchOptions {
  sources: Sources;
  shard: Shard;
  quiet: boolean;
}

export interface OutputOptions {
  output: string;
  format: FormatName;
  restart: boolean;
  /** Seconds between saves: the most work that a kill may cost. */
  save_every: number;
  /** The parts of the command that determine the rows. */
  identity: Identity;
}

function select(
  { sources, signal, shard }: JobOptions,
  { skipped, earlier }: { skipped?: SkippedFiles; earlier?: Reached },
): Selection {
  const list = (is_wanted: () => boolean) => list_images(sources, signal, { skipped, is_wanted });
  return new Selection(list, shard, earlier);
}

/** Computes everything and passes results to `sink` as they are computed. */
export async function run_to_sink(task: Task, sink: Sink, options: JobOptions): Promise<void> {
  const skipped = new SkippedFiles();
  const selection = select(options, { skipped });
  await run_batches(selection.images(), task, sink, options);
  report_skipped(skipped);
}

/**
 * Computes everything into a file. Resumes an interrupted run of the same command, and retries what failed in a completed one.
 *
 * @param load loads the model; not called if nothing is left to compute.
 * @returns the exit code.
 */
export async function run_to_file(
  load: () => Promise<Task>,
  options: JobOptions,
  target: OutputOptions,
): Promise<number> {
  try {
    await make_folder(dirname(target.output));
    const output = await output_file(target.output);
    const held = { what: target.output, signal: options.signal };
    return await with_lock(lock_path(output), held, (lock) =>
      run_locked(load, options, { ...target, output }, lock),
    );
  } catch (error) {
    throw to_output_error(error, target.output);
  }
}

async function run_locked(
  load: () => Promise<Task>,
  options: JobOptions,
  target: OutputOptions,
  lock: Lock,
): Promise<number> {
  const { output, restart } = target;
  const format: Format = FORMATS[target.format];
  const identity = describe(target.identity, target.format, options);
  const found = await Output.find(output, format, lock, restart);
  if (found !== undefined) {
    check_identity(output, found.journal.identity, identity);
    await found.check_complete();
    if (found.journal.state !== "running") {
      await finish_again(found, output, options);
      if (!(await found.can_retry())) return report_complete(output, found.journal, options);
      await found.begin_retry();
    }
  }
  const task = await load();
  try {
    const probed = await probe(task, options.signal);
    if (found !== undefined) check_probe(output, found.journal.probe, probed);
    const facts = { identity, shape: task.shape, probe: probed };
    const file = found ?? (await Output.begin(output, format, lock, facts));
    return await compute_to_file(task, options, target, file);
  } finally {
    await task.dispose();
  }
}

const PROBE_LENGTH = 64;

/** What determines the rows; threads, device and batch size only change the speed. */
function describe(identity: Identity, format: FormatName, { sources, shard }: JobOptions): Identity {
  return {
    version,
    ...identity,
    format,
    shard: `${shard.index}/${shard.count}`,
    sources: shortened(sources.paths),
    lists: shortened(sources.lists),
  };
}

/** The sources' names, or their hash if a shell has expanded a glob into many. */
function shortened(sources: readonly string[]): unknown {
  const names = sources.map(source_name);
  if (names.length <= 20) return names;
  return { count: names.length, sha256: createHash("sha256").update(names.join("\n")).digest("hex") };
}

/** For a run that has computed everything: its output file may still have to be written. */
async function finish_again(found: Output, output: string, options: JobOptions): Promise<void> {
  const { journal } = found;
  // Otherwise the output would seem to cover the sources as they are now.
  const selection = select(options, { earlier: journal });
  for await (const { reached } of selection.images()) if (reached.position > journal.position) break;
  if (selection.reached.position > journal.position)
    throw refusal(output, `the sources now have more than the ${journal.position} images that they had`);
  await found.finish();
}

function report_complete(output: string, journal: Readonly<Progress>, { quiet }: JobOptions): number {
  if (!quiet) notify(`${output} is complete: ${summary(journal)}.`);
  return exit_code(journal);
}

function exit_code({ failures }: Readonly<Progress>): number {
  return failures === 0 ? DONE : DONE_BUT_FAILURES;
}

function summary({ rows, failures }: Pick<Progress, "rows" | "failures">): string {
  const images = `${rows} ${rows === 1 ? "image" : "images"}`;
  return failures === 0 ? images : `${images}, and ${failures} failed`;
}

/** Appends to an output and saves it periodically. */
class FileSink implements Sink {
  readonly #file: Output;
  readonly #progress: RunProgress;
  readonly #save_every_ms: number;
  #reached: Reached;
  #saved = Date.now();

  constructor(file: Output, progress: RunProgress, save_every_ms: number) {
    this.#file = file;
    this.#progress = progress;
    this.#save_every_ms = save_every_ms;
    this.#reached = file.journal;
  }

  async write(outcomes: readonly Outcome[], reached: Reached): Promise<void> {
    const failures: string[] = [];
    for (const outcome of outcomes) {
      if ("row" in outcome) this.#file.add(outcome.row);
      else if ("stored" in outcome) this.#file.add_stored(outcome.stored);
      else {
        this.#file.add_failure(outcome.image, outcome.error);
        failures.push(`${outcome.error.message} [${outcome.error.code}]`);
      }
    }
    this.#reached = reached;
    this.#progress.add(outcomes.length - failures.length, failures);
    if (this.#file.is_full || Date.now() - this.#saved >= this.#save_every_ms) await this.save();
  }

  async save(reached: Reached = this.#reached): Promise<void> {
    await this.#file.commit(reached);
    this.#saved = Date.now();
  }
}

async function compute_to_file(
  task: Task,
  options: JobOptions,
  { output, format, restart, save_every }: OutputOptions,
  file: Output,
): Promise<number> {
  const started = file.journal;
  const progress = new RunProgress(options.quiet, started.rows + started.failures);
  const skipped = new SkippedFiles();
  try {
    await file.open();
    const sink = new FileSink(file, progress, save_every * 1000);
    const selection = select(options, { skipped, earlier: started });
    const counting = progress.wants_total ? count_ahead(options, progress) : undefined;
    const { max_text = Number.POSITIVE_INFINITY }: Format = FORMATS[format];
    const selected = with_short_names(selection.images(), max_text);
    try {
      await run_batches(started.retry ? with_earlier(selected, file) : selected, task, sink, options);
      check_end(selection.reached, started.retry);
    } catch (error) {
      // Whatever ended the run, save what was computed.
      await sink.save();
      const { rows, failures } = file.journal;
      if (!options.quiet && !(error instanceof SourcesChanged))
        progress.notify(
          `stopped after ${summary({ rows, failures })}; run the same command again ${restart ? "without --restart " : ""}to resume.`,
        );
      throw error;
    } finally {
      await counting?.stop();
    }
    await sink.save(selection.reached);
    await file.finish();
  } finally {
    progress.stop();
    await file.close();
  }
  report_skipped(skipped);
  if (!options.quiet) report_done(output, file.journal);
  return exit_code(file.journal);
}

/** Replaces images whose names the format can't store by ones that fail. */
async function* with_short_names(
  selected: AsyncIterable<Selected>,
  max_text: number,
): AsyncGenerator<Selected> {
  for await (const image of selected) {
    const { name } = image;
    const is_short = name.length <= max_text;
    yield is_short ? image : { ...image, ...unreadable(name, text_too_long("name", name, max_text)) };
  }
}

/** Also with --quiet: nothing is skipped silently. */
function report_skipped(skipped: SkippedFiles): void {
  const summary = skipped.summary();
  if (summary !== undefined) notify(`${summary}.`);
}

function report_done(output: string, progress: Readonly<Progress>): void {
  const listed = progress.failures === 0 ? "" : ` (listed in ${failures_path(output)})`;
  notify(`wrote ${output}: ${summary(progress)}${listed}.`);
}

/** Counts the images while the run is in progress, for the bar. */
function count_ahead({ sources, shard, signal }: JobOptions, progress: RunProgress) {
  const stopped = new AbortController();
  const count = async () => {
    if (!can_be_counted(sources)) return;
    const all = AbortSignal.any([signal, stopped.signal]);
    let position = 0;
    for await (const _ of list_images(sources, all, { is_wanted: () => false })) {
      if (all.aborted) return;
      // A walk rarely waits: let other work run.
      if (++position % 1000 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    progress.total = Math.ceil((position - shard.index) / shard.count);
  };
  // The run itself reports what can't be read.
  const counting = count().catch(() => {});
  return {
    stop: () => {
      stopped.abort();
      return counting;
    },
  };
}

/** Turns errors of the file system and of changed sources into VitMsnErrors. */
function to_output_error(error: unknown, output: string): unknown {
  if (error instanceof SourcesChanged) return refusal(output, error.message);
  const is_system_error = error instanceof Error && "syscall" in error;
  if (!is_system_error) return error;
  return new VitMsnError("IO", `${output} can't be written: ${error.message}.`, { cause: error });
}

/** A fixed image with detail at every scale. */
function probe_image(): RawImage {
  const side = 64;
  const pixels = Uint8Array.from({ length: side * side * 3 }, (_, i) => {
    const [x, y, channel] = [Math.floor(i / 3) % side, Math.floor(i / 3 / side), i % 3];
    return (x * (3 + channel) + y * (5 - channel) + ((x * y) >> (2 + channel))) % 256;
  });
  return new RawImage(pixels, side, side, 3);
}

/** An image of one pixel, to find out whether this machine can decode any before thousands fail. */
const SMALLEST_PNG =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";

/** The model's output for a fixed image, by which another run recognises the model. */
async function probe(task: Task, signal: AbortSignal): Promise<number[]> {
  await RawImage.read(SMALLEST_PNG, { signal });
  const [row] = await task.compute([await task.prepare(probe_image(), signal)], signal);
  return Array.from(row?.values ?? []).slice(0, PROBE_LENGTH);
}
