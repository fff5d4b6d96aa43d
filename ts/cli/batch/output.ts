import { constants } from "node:fs";
import { type FileHandle, open, rm, stat } from "node:fs/promises";
import { VitMsnError } from "../../index.ts";
import { file_error } from "./errors.ts";
import { rename_durably, sync_file } from "./files.ts";
import { type Journal, type Progress, read_journal, write_journal } from "./journal.ts";
import { decode_rows, type Format, type Row, type RowShape } from "./rows.ts";
import type { Reached } from "./selection.ts";

/** The files of one run: all are named after its output. */
function paths_of(output: string) {
  return {
    /** The rows so far. */
    part: `${output}.part`,
    /** The finished file before it has its name. */
    finished: `${output}.tmp`,
    journal: `${output}.journal.json`,
    failures: `${output}.errors.jsonl`,
    names: `${output}.images.jsonl`,
  };
}

/** The file that lists what failed, one JSON object a line: {"image", "code", "message"}. */
export function failures_path(output: string): string {
  return paths_of(output).failures;
}

/**
 * An output that is written piece by piece and can be gone on with after any end: rows and failures are appended, and
 * the journal says how many bytes of them count. It is replaced only once these are on the disk, so whatever
 * follows them is the work of a run that was ended, and is cut off.
 */
export class Output {
  readonly #output: string;
  readonly #paths: ReturnType<typeof paths_of>;
  readonly #format: Format;
  #journal: Journal;
  #rows: FileHandle | undefined;
  #failures: FileHandle | undefined;
  #pending: (Uint8Array | string)[] = [];
  #pending_failures = "";

  private constructor(output: string, format: Format, journal: Journal) {
    this.#output = output;
    this.#paths = paths_of(output);
    this.#format = format;
    this.#journal = journal;
  }

  /** The journal that an earlier run left; undefined where there was none, or its output is to be begun anew. */
  static async find(output: string, restart: boolean): Promise<Journal | undefined> {
    const paths = paths_of(output);
    if (restart) {
      // The journal first: without it, the rest is no run's.
      for (const path of [paths.journal, output, paths.part, paths.finished, paths.failures, paths.names])
        await rm(path, { force: true });
      return undefined;
    }
    const journal = await read_journal(paths.journal);
    if (journal === undefined && (await exists(output))) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `${output} is already there, and not by a run that could go on. Give another --output, or overwrite it with --restart.`,
      );
    }
    return journal;
  }

  /** Says that a run begins here. */
  static async begin(output: string, journal: Journal): Promise<void> {
    await write_journal(paths_of(output).journal, journal);
  }

  /** Opens the files for appending, cut to what the journal vouches for. */
  static async open(output: string, format: Format, journal: Journal): Promise<Output> {
    const opened = new Output(output, format, journal);
    if (journal.state === "running") {
      const { part, failures } = opened.#paths;
      opened.#rows = await open_cut(part, journal.row_bytes);
      opened.#failures = await open_cut(failures, journal.failure_bytes);
    }
    return opened;
  }

  get progress(): Readonly<Progress> {
    return this.#journal;
  }

  add(row: Row): void {
    this.#pending.push(this.#format.encode(row));
    this.#journal = { ...this.#journal, rows: this.#journal.rows + 1 };
  }

  add_failure(image: string, { code, message }: VitMsnError): void {
    this.#pending_failures += `${JSON.stringify({ image, code, message })}\n`;
    this.#journal = { ...this.#journal, failures: this.#journal.failures + 1 };
  }

  /** Puts everything added so far on the disk: the next run goes on behind it. */
  async commit(reached: Reached): Promise<void> {
    const rows = Buffer.concat(this.#pending.map((piece) => Buffer.from(piece as Uint8Array)));
    const failures = Buffer.from(this.#pending_failures);
    const { row_bytes, failure_bytes } = this.#journal;
    await append(this.#rows, rows, row_bytes);
    await append(this.#failures, failures, failure_bytes);
    this.#pending = [];
    this.#pending_failures = "";
    await this.#record({
      ...reached,
      row_bytes: row_bytes + rows.length,
      failure_bytes: failure_bytes + failures.length,
    });
  }

  /** Makes the finished file of the rows. */
  async finish(shape: RowShape): Promise<void> {
    if (this.#journal.state === "running") await this.#record({ state: "finishing" });
    await this.close();
    if (this.#journal.state === "finishing") {
      await this.#write_finished(shape);
      await this.#record({ state: "complete" });
    }
    await rm(this.#paths.part, { force: true });
    if (this.#journal.failures === 0) await rm(this.#paths.failures, { force: true });
  }

  /** Lets go of the files; what wasn't committed is forgotten. */
  async close(): Promise<void> {
    await this.#rows?.close();
    await this.#failures?.close();
    this.#rows = undefined;
    this.#failures = undefined;
  }

  async #write_finished(shape: RowShape): Promise<void> {
    const { part, finished, names } = this.#paths;
    const { write, has_no_names } = this.#format;
    if (write === undefined) {
      // A run that ended between renaming and saying so has nothing left to rename.
      if (await exists(part)) await rename_durably(part, this.#output);
      return;
    }
    const rows = () => rows_of(part);
    await write(finished, { ...shape, rows, count: this.#journal.rows });
    await sync_file(finished);
    if (has_no_names) await write_names(names, rows());
    await rename_durably(finished, this.#output);
  }

  async #record(change: Partial<Progress>): Promise<void> {
    const journal = { ...this.#journal, ...change };
    await write_journal(this.#paths.journal, journal);
    this.#journal = journal;
  }
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}

async function open_cut(path: string, bytes: number): Promise<FileHandle> {
  let file: FileHandle;
  try {
    file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o666);
  } catch (error) {
    throw file_error(error, path);
  }
  if ((await file.stat()).size < bytes) {
    await file.close();
    throw new VitMsnError(
      "IO",
      `${path} is shorter than its journal says: it was changed or lost. Begin anew with --restart.`,
    );
  }
  await file.truncate(bytes);
  return file;
}

async function append(file: FileHandle | undefined, bytes: Uint8Array, position: number): Promise<void> {
  if (file === undefined || bytes.length === 0) return;
  for (let written = 0; written < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, written, bytes.length - written, position + written);
    written += bytesWritten;
  }
  await file.datasync();
}

async function* rows_of(part: string): AsyncGenerator<Row> {
  const file = await open(part, "r");
  try {
    yield* decode_rows(file, part);
  } finally {
    await file.close();
  }
}

/** One JSON string a line: a file's name may have a line feed in it. */
async function write_names(path: string, rows: AsyncIterable<Row>): Promise<void> {
  const temporary = `${path}.tmp`;
  const file = await open(temporary, "w");
  try {
    for await (const { image } of rows) await file.appendFile(`${JSON.stringify(image)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename_durably(temporary, path);
}
