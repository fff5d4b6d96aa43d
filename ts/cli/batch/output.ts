import { createHash, type Hash } from "node:crypto";
import { constants } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import {
  type Digest,
  digest_of,
  hash_file,
  is_code,
  is_temporary,
  type Lock,
  lstat,
  open,
  readdir,
  readlink,
  rename_durably,
  rm,
  stat,
  sync_folder,
  temporary_path,
  write_all,
  write_durably,
  write_file,
} from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";
import { file_error } from "./errors.ts";
import {
  type Journal,
  journal_text,
  type Progress,
  type Reached,
  read_journal,
  read_journal_text,
} from "./journal.ts";
import { damaged, decode_row, type Format, type KeptRow, type Row, split_lines } from "./rows.ts";

/** Rows that an earlier run made come fast, and saves may be far apart. */
const MAX_PENDING_BYTES = 16 * 1024 * 1024;
/** Most links that lead from one to the next. */
const MAX_LINKS = 40;

/** The files of one run: all are named after its output. */
function paths_of(output: string) {
  return {
    lock: `${output}.lock`,
    /** The rows so far. */
    part: `${output}.part`,
    /** Where pictures failed: the rows of a finished file that isn't made of them alone, for the run that tries these again. */
    kept: `${output}.rows`,
    journal: `${output}.journal.json`,
    failures: `${output}.errors.jsonl`,
    /** The same of a run that tries them again. */
    new_failures: `${output}.errors.jsonl.part`,
    names: `${output}.images.jsonl`,
  };
}

/** The file that lists what failed, one JSON object a line: {"image", "code", "message"}. */
export function failures_path(output: string): string {
  return paths_of(output).failures;
}

export function lock_path(output: string): string {
  return paths_of(output).lock;
}

/** What an output is that may be a link: one file, by whatever name, has one lock and one journal. */
export async function output_file(output: string): Promise<string> {
  let path = output;
  for (let links = 0; links < MAX_LINKS; links++) {
    const info = await lstat(path).catch((error: unknown) => {
      if (is_code(error, "ENOENT")) return undefined;
      throw file_error(error, path);
    });
    if (info?.isDirectory())
      throw new VitMsnError("INVALID_ARGUMENT", `${output} is a folder; give --output the name of a file.`);
    if (!info?.isSymbolicLink()) return path;
    path = resolve(dirname(path), await readlink(path));
  }
  throw new VitMsnError("IO", `${output} is a link that leads in a circle.`);
}

/**
 * An output that is written piece by piece and can be resumed after any end: rows and failures are appended, and
 * the journal says how many bytes of them count. It is replaced only once these are on the disk, so whatever
 * follows them is the work of a run that was ended, and is cut off. Nothing is said to be complete before it was read again and
 * found to be what was written.
 */
export class Output {
  readonly #output: string;
  readonly #paths: ReturnType<typeof paths_of>;
  readonly #format: Format;
  readonly #lock: Lock;
  #journal: Journal;
  /** What is in the journal's file. */
  #written: string | undefined;
  #rows: Appended | undefined;
  #failures: Appended | undefined;
  #pending: Uint8Array[] = [];
  #pending_bytes = 0;
  #pending_failures: Uint8Array[] = [];

  private constructor(
    output: string,
    format: Format,
    lock: Lock,
    found: { journal: Journal; text: string | undefined },
  ) {
    this.#output = output;
    this.#paths = paths_of(output);
    this.#format = format;
    this.#lock = lock;
    this.#journal = found.journal;
    this.#written = found.text;
  }

  /** The output that an earlier run left; undefined where there was none, or its output is to be started again. */
  static async find(
    output: string,
    format: Format,
    lock: Lock,
    restart: boolean,
  ): Promise<Output | undefined> {
    const paths = paths_of(output);
    await remove_temporary(output, [output, paths.journal, paths.names]);
    if (restart) {
      // The journal first: without it, the rest is no run's.
      await rm(paths.journal, { force: true });
      await sync_folder(dirname(output));
      const { part, kept, failures, new_failures, names } = paths;
      for (const path of [output, part, kept, failures, new_failures, names]) await rm(path, { force: true });
      return undefined;
    }
    const found = await read_journal(paths.journal);
    if (found !== undefined) return new Output(output, format, lock, found);
    if (!(await exists(output))) return undefined;
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${output} is already there, and not by a run that could go on. Give another --output, or overwrite it with --restart.`,
    );
  }

  /** Begins one. The journal is there before any row is. */
  static async begin(
    output: string,
    format: Format,
    lock: Lock,
    facts: Pick<Journal, "identity" | "shape" | "probe">,
  ): Promise<Output> {
    const journal: Journal = { version: 2, ...facts, ...NOTHING };
    const begun = new Output(output, format, lock, { journal, text: undefined });
    await begun.#record({});
    return begun;
  }

  get journal(): Readonly<Journal> {
    return this.#journal;
  }

  /** Opens the files of a run under way for appending, cut to what the journal vouches for. */
  async open(): Promise<void> {
    const { row_bytes, rows_sha256, failure_bytes, failures_sha256, retry } = this.#journal;
    const failures = retry === undefined ? this.#paths.failures : this.#paths.new_failures;
    this.#rows = await Appended.open(this.#paths.part, { bytes: row_bytes, sha256: rows_sha256 });
    this.#failures = await Appended.open(failures, { bytes: failure_bytes, sha256: failures_sha256 });
    await sync_folder(dirname(this.#output));
  }

  /** @throws VitMsnError UNSUPPORTED where the format can't keep a label. */
  add(row: Row): void {
    const { max_text = Number.POSITIVE_INFINITY } = this.#format;
    const label = row.labels?.find(({ length }) => length > max_text);
    if (label !== undefined) throw text_too_long("label", label, max_text);
    this.#push(this.#format.encode(row));
    this.#count({ rows: 1 }, { failures_done: 1 });
  }

  /** Adds a row that an earlier run made. */
  add_kept({ bytes }: KeptRow): void {
    this.#push(bytes);
    this.#count({ rows: 1 }, { rows_done: 1 });
  }

  add_failure(image: string, { code, message }: VitMsnError): void {
    this.#pending_failures.push(Buffer.from(`${JSON.stringify({ image, code, message })}\n`));
    this.#count({ failures: 1 }, { failures_done: 1 });
  }

  #push(bytes: Uint8Array): void {
    this.#pending.push(bytes);
    this.#pending_bytes += bytes.byteLength;
  }

  /** Whether what was added since the last commit takes much memory. */
  get is_full(): boolean {
    return this.#pending_bytes >= MAX_PENDING_BYTES;
  }

  #count(
    { rows = 0, failures = 0 }: { rows?: number; failures?: number },
    { rows_done = 0, failures_done = 0 }: { rows_done?: number; failures_done?: number },
  ): void {
    const journal = this.#journal;
    const retry = journal.retry && {
      ...journal.retry,
      rows_done: journal.retry.rows_done + rows_done,
      failures_done: journal.retry.failures_done + failures_done,
    };
    this.#journal = { ...journal, rows: journal.rows + rows, failures: journal.failures + failures, retry };
  }

  /** Puts everything added so far on the disk: the next run goes on behind it. */
  async commit(reached: Reached): Promise<void> {
    await this.#lock.check();
    await this.#rows?.append(this.#pending);
    this.#pending = [];
    this.#pending_bytes = 0;
    await this.#failures?.append(this.#pending_failures);
    this.#pending_failures = [];
    const [rows, failures] = [this.#rows?.digest, this.#failures?.digest];
    await this.#record({
      ...reached,
      ...(rows && { row_bytes: rows.bytes, rows_sha256: rows.sha256 }),
      ...(failures && { failure_bytes: failures.bytes, failures_sha256: failures.sha256 }),
    });
  }

  /** Makes the finished file of the rows. */
  async finish(): Promise<void> {
    if (this.#journal.state === "running") await this.#record({ state: "finishing" });
    await this.close();
    if (this.#journal.state === "finishing") {
      await this.#put_in_place();
      await this.#record({ state: "complete", retry: undefined });
    }
    await this.#tidy();
  }

  /** Lets go of the files; what wasn't committed is forgotten. */
  async close(): Promise<void> {
    await this.#rows?.close();
    await this.#failures?.close();
    this.#rows = undefined;
    this.#failures = undefined;
  }

  // Trying again what failed.

  /** Whether something failed, and what didn't is still there. */
  async can_retry(): Promise<boolean> {
    if (this.#journal.failures === 0) return false;
    const { row_bytes, rows_sha256, failure_bytes, failures_sha256 } = this.#journal;
    return (
      (await is_whole(this.#earlier_rows, { bytes: row_bytes, sha256: rows_sha256 })) &&
      (await is_whole(this.#paths.failures, { bytes: failure_bytes, sha256: failures_sha256 }))
    );
  }

  /** Begins a run that writes everything again, with the rows that are there already. The finished file stays until then. */
  async begin_retry(): Promise<void> {
    const { position, names_sha256, rows, failures } = this.#journal;
    const retry = { position, names_sha256, rows, failures, rows_done: 0, failures_done: 0 };
    await this.#record({ ...NOTHING, retry });
  }

  /** The rows of the earlier run that aren't done with. */
  earlier_rows(): AsyncGenerator<KeptRow> {
    return behind(this.#rows_of(this.#earlier_rows), this.#journal.retry?.rows_done ?? 0);
  }

  /** The names of the pictures that failed in the earlier run and aren't done with. */
  earlier_failures(): AsyncGenerator<string> {
    return behind(failed_images(this.#paths.failures), this.#journal.retry?.failures_done ?? 0);
  }

  get #earlier_rows(): string {
    return this.#format.write === undefined ? this.#output : this.#paths.kept;
  }

  // Finishing.

  async #put_in_place(): Promise<void> {
    const { part, failures, new_failures } = this.#paths;
    const { retry, rows, row_bytes: bytes, rows_sha256: sha256 } = this.#journal;
    // Where every picture failed again, the rows are those that are there.
    if (retry === undefined || rows > retry.rows) await this.#put_rows({ bytes, sha256 });
    else await rm(part, { force: true });
    if (retry !== undefined && (await exists(new_failures))) await rename_durably(new_failures, failures);
  }

  async #put_rows(digest: Digest): Promise<void> {
    const { part, names } = this.#paths;
    const { write, has_no_names } = this.#format;
    if (write === undefined) {
      // A run that ended between renaming and saying so has nothing left to rename.
      const is_named = !(await exists(part));
      await check_whole(is_named ? this.#output : part, digest);
      if (!is_named) await rename_durably(part, this.#output);
      return;
    }
    await check_whole(part, digest);
    const rows = () => this.#decoded(part);
    const { shape, rows: count } = this.#journal;
    await put(this.#output, (path) => write(path, { ...shape, rows, count }));
    if (has_no_names) await put(names, (path) => write_file(path, name_lines(rows())));
  }

  /** Removes what is of no use once the output is complete. */
  async #tidy(): Promise<void> {
    const { part, kept, failures, new_failures } = this.#paths;
    const has_failures = this.#journal.failures > 0;
    if (has_failures && this.#format.write !== undefined && (await exists(part)))
      await rename_durably(part, kept);
    const left = has_failures ? [part, new_failures] : [part, kept, failures, new_failures];
    for (const path of left) await rm(path, { force: true });
  }

  /** All rows. @throws VitMsnError IO where they aren't as many as the journal says. */
  async *#decoded(path: string): AsyncGenerator<Row> {
    let count = 0;
    for await (const { bytes } of this.#rows_of(path)) {
      count++;
      yield decode_row(bytes);
    }
    if (count !== this.#journal.rows) throw damaged(path);
  }

  async *#rows_of(path: string): AsyncGenerator<KeptRow> {
    const file = await open(path, "r");
    try {
      yield* this.#format.split(file, path);
    } finally {
      await file.close();
    }
  }

  async #record(change: Partial<Journal>): Promise<void> {
    await this.#lock.check();
    if ((await read_journal_text(this.#paths.journal)) !== this.#written)
      throw new VitMsnError("IO", `${this.#paths.journal} was changed by another process during the run.`);
    const journal = { ...this.#journal, ...change };
    const text = journal_text(journal);
    await write_durably(this.#paths.journal, text);
    this.#written = text;
    this.#journal = journal;
  }
}

const EMPTY_SHA256 = createHash("sha256").digest("hex");

/** Where every run begins. */
const NOTHING: Progress = {
  state: "running",
  position: 0,
  names_sha256: EMPTY_SHA256,
  rows: 0,
  failures: 0,
  row_bytes: 0,
  rows_sha256: EMPTY_SHA256,
  failure_bytes: 0,
  failures_sha256: EMPTY_SHA256,
};

/** A file that grows, and what all its bytes are known by. */
class Appended {
  readonly #file: FileHandle;
  readonly #hash: Hash;
  #bytes: number;

  private constructor(file: FileHandle, hash: Hash, bytes: number) {
    this.#file = file;
    this.#hash = hash;
    this.#bytes = bytes;
  }

  /** Cuts off what follows the known beginning. @throws VitMsnError IO where that isn't there. */
  static async open(path: string, { bytes, sha256 }: Digest): Promise<Appended> {
    let file: FileHandle;
    try {
      file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o666);
    } catch (error) {
      throw file_error(error, path);
    }
    try {
      if ((await file.stat()).size < bytes) {
        throw new VitMsnError(
          "IO",
          `${path} is shorter than its journal says: it was changed or lost. Start again with --restart.`,
        );
      }
      const hash = createHash("sha256");
      await hash_file(path, bytes, hash);
      if (hash.copy().digest("hex") !== sha256) throw damaged(path);
      await file.truncate(bytes);
      return new Appended(file, hash, bytes);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get digest(): Digest {
    return { bytes: this.#bytes, sha256: this.#hash.copy().digest("hex") };
  }

  /** They are on the disk when this is done; where it fails, nothing was appended. */
  async append(pieces: readonly Uint8Array[]): Promise<void> {
    const bytes = Buffer.concat(pieces);
    if (bytes.length === 0) return;
    await write_all(this.#file, bytes, this.#bytes);
    await this.#file.datasync();
    this.#hash.update(bytes);
    this.#bytes += bytes.length;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** What a format can't keep of a row. */
export function text_too_long(what: string, text: string, max_text: number): VitMsnError {
  return new VitMsnError(
    "UNSUPPORTED",
    `The ${what} ${JSON.stringify(text.slice(0, 60))}... has ${text.length} characters, more than the ${max_text} that this format ` +
      "keeps; use .jsonl or .parquet.",
  );
}

/** Writes a file under another name, reads it again, and gives it its name where it is what was written. */
async function put(path: string, write: (temporary: string) => Promise<Digest>): Promise<void> {
  const temporary = temporary_path(path);
  try {
    const written = await write(temporary);
    const { bytes, sha256 } = await digest_of(temporary);
    if (bytes !== written.bytes || sha256 !== written.sha256)
      throw new VitMsnError(
        "IO",
        `${path} can't be written: the disk gives back other bytes than were written. Check it, and run the same command again.`,
      );
    await rename_durably(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

async function check_whole(path: string, wanted: Digest): Promise<void> {
  if (!(await is_whole(path, wanted))) throw damaged(path);
}

async function is_whole(path: string, wanted: Digest): Promise<boolean> {
  try {
    const info = await stat(path);
    if (!info.isFile() || info.size !== wanted.bytes) return false;
    return (await digest_of(path)).sha256 === wanted.sha256;
  } catch (error) {
    if (is_code(error, "ENOENT")) return false;
    throw file_error(error, path);
  }
}

/** What killed runs left under names of their own. */
async function remove_temporary(output: string, files: readonly string[]): Promise<void> {
  const folder = dirname(output);
  const names = files.map((path) => basename(path));
  for (const name of await readdir(folder))
    if (is_temporary(name, names)) await rm(join(folder, name), { force: true });
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (is_code(error, "ENOENT")) return false;
    throw error;
  }
}

async function* behind<T>(items: AsyncIterable<T>, count: number): AsyncGenerator<T> {
  let position = 0;
  for await (const item of items) if (position++ >= count) yield item;
}

async function* failed_images(path: string): AsyncGenerator<string> {
  const file = await open(path, "r");
  try {
    for await (const { image } of split_lines(file, path)) yield image;
  } finally {
    await file.close();
  }
}

/** One JSON string a line: a file's name may have a line feed in it. */
async function* name_lines(rows: AsyncIterable<Row>): AsyncGenerator<Uint8Array> {
  for await (const { image } of rows) yield Buffer.from(`${JSON.stringify(image)}\n`);
}
