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
import { damaged, decode_row, type Format, type Row, type StoredRow, split_lines } from "./rows.ts";

/** The most bytes added between saves: stored rows of an earlier run come fast, and saves may be far apart. */
const MAX_PENDING_BYTES = 16 * 1024 * 1024;
/** The longest chain of symbolic links. */
const MAX_LINKS = 40;

/** The files of one run, all named after its output. */
function paths_of(output: string) {
  return {
    lock: `${output}.lock`,
    /** The rows so far. */
    part: `${output}.part`,
    /** If images failed: the rows of a complete output in a format that can't be appended to, for the run that retries them. */
    rows: `${output}.rows`,
    journal: `${output}.journal.json`,
    failures: `${output}.errors.jsonl`,
    /** The failures of a run that retries. */
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

/** The file that an output path leads to by symbolic links: a file has one lock and one journal, whatever its name. */
export async function output_file(output: string): Promise<string> {
  let path = output;
  for (let links = 0; links < MAX_LINKS; links++) {
    const info = await lstat(path).catch((error: unknown) => {
      if (is_code(error, "ENOENT")) return undefined;
      throw file_error(error, path);
    });
    if (info?.isDirectory())
      throw new VitMsnError("INVALID_ARGUMENT", `${output} is a folder; --output must name a file.`);
    if (!info?.isSymbolicLink()) return path;
    path = resolve(dirname(path), await readlink(path));
  }
  throw new VitMsnError(
    "IO",
    `${output} is a symbolic link that never leads to a file; choose another --output.`,
  );
}

/**
 * An output that is written piece by piece and can be resumed after any interruption. Rows and failures are appended, and the
 * journal records how many bytes of them are valid. The journal is replaced only once these bytes are on the disk, so bytes
 * beyond them come from an interrupted run and are cut off. An output counts as complete only after it has been read back and
 * compared with what was written.
 */
export class Output {
  readonly #output: string;
  readonly #paths: ReturnType<typeof paths_of>;
  readonly #format: Format;
  readonly #lock: Lock;
  #journal: Journal;
  /** The text of the journal's file. */
  #written: string | undefined;
  #rows: GrowingFile | undefined;
  #failures: GrowingFile | undefined;
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

  /** The output that an earlier run left; undefined if there is none, or it is to be started again. */
  static async find(
    output: string,
    format: Format,
    lock: Lock,
    restart: boolean,
  ): Promise<Output | undefined> {
    const paths = paths_of(output);
    await remove_temporary(output, [output, paths.journal, paths.names]);
    if (restart) {
      // The journal first: without it, the other files belong to no run.
      await rm(paths.journal, { force: true });
      await sync_folder(dirname(output));
      const { part, rows, failures, new_failures, names } = paths;
      for (const path of [output, part, rows, failures, new_failures, names]) await rm(path, { force: true });
      return undefined;
    }
    const found = await read_journal(paths.journal);
    if (found !== undefined) return new Output(output, format, lock, found);
    if (!(await exists(output))) return undefined;
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${output} already exists, and it isn't the output of a run that can be resumed. Choose another --output, or overwrite it with --restart.`,
    );
  }

  /** Starts a new output. The journal exists before any row does. */
  static async begin(
    output: string,
    format: Format,
    lock: Lock,
    facts: Pick<Journal, "identity" | "shape" | "probe">,
  ): Promise<Output> {
    const journal: Journal = { version: 2, ...facts, ...INITIAL };
    const started = new Output(output, format, lock, { journal, text: undefined });
    await started.#record({});
    return started;
  }

  get journal(): Readonly<Journal> {
    return this.#journal;
  }

  /** Opens the files of a running output for appending, cut to the length in the journal. */
  async open(): Promise<void> {
    const { row_bytes, rows_sha256, failure_bytes, failures_sha256, retry } = this.#journal;
    const failures = retry === undefined ? this.#paths.failures : this.#paths.new_failures;
    this.#rows = await GrowingFile.open(this.#paths.part, { bytes: row_bytes, sha256: rows_sha256 });
    this.#failures = await GrowingFile.open(failures, { bytes: failure_bytes, sha256: failures_sha256 });
    await sync_folder(dirname(this.#output));
  }

  /** @throws VitMsnError UNSUPPORTED if a label is too long for the format. */
  add(row: Row): void {
    const { max_text = Number.POSITIVE_INFINITY } = this.#format;
    const label = row.labels?.find(({ length }) => length > max_text);
    if (label !== undefined) throw text_too_long("label", label, max_text);
    this.#push(this.#format.encode(row));
    this.#count({ rows: 1 }, { failures_done: 1 });
  }

  /** Adds a row stored by an earlier run. */
  add_stored({ bytes }: StoredRow): void {
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

  /** Whether the rows added since the last commit take much memory. */
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

  /** Stores everything added so far on the disk, so that the next run resumes after it. */
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

  /** Writes the output file from the rows. */
  async finish(): Promise<void> {
    if (this.#journal.state === "running") await this.#record({ state: "finishing" });
    await this.close();
    if (this.#journal.state === "finishing") {
      const written = (await this.#write_output()) ?? this.#journal.written;
      await this.#record({ state: "complete", retry: undefined, written });
    }
    await this.#tidy();
  }

  /** Closes the files; what wasn't committed is dropped. */
  async close(): Promise<void> {
    await this.#rows?.close();
    await this.#failures?.close();
    this.#rows = undefined;
    this.#failures = undefined;
  }

  /** @throws VitMsnError IO if the output is complete by its journal, but its file isn't what was written. */
  async check_complete(): Promise<void> {
    const { state, row_bytes: bytes, rows_sha256: sha256, written } = this.#journal;
    if (state !== "complete") return;
    const expected = this.#format.write === undefined ? { bytes, sha256 } : written;
    const is_there = expected ? await is_unchanged(this.#output, expected) : await exists(this.#output);
    if (is_there && (!this.#format.has_no_names || (await exists(this.#paths.names)))) return;
    throw new VitMsnError(
      "IO",
      `${this.#output} was complete, and its file has been deleted or changed since. Start again with --restart.`,
    );
  }

  /** Whether something failed and the rows of everything else are still stored. */
  async can_retry(): Promise<boolean> {
    if (this.#journal.failures === 0) return false;
    const { row_bytes, rows_sha256, failure_bytes, failures_sha256 } = this.#journal;
    return (
      (await is_unchanged(this.#earlier_rows, { bytes: row_bytes, sha256: rows_sha256 })) &&
      (await is_unchanged(this.#paths.failures, { bytes: failure_bytes, sha256: failures_sha256 }))
    );
  }

  /** Starts a run that writes everything again, reusing the stored rows. The output file stays until the new one is written. */
  async begin_retry(): Promise<void> {
    const { position, names_sha256, rows, failures } = this.#journal;
    const retry = { position, names_sha256, rows, failures, rows_done: 0, failures_done: 0 };
    await this.#record({ ...INITIAL, retry });
  }

  /** The rows of the earlier run that haven't been processed. */
  earlier_rows(): AsyncGenerator<StoredRow> {
    return skip_first(this.#rows_of(this.#earlier_rows), this.#journal.retry?.rows_done ?? 0);
  }

  /** The names of the images that failed in the earlier run and haven't been processed. */
  earlier_failures(): AsyncGenerator<string> {
    return skip_first(failed_images(this.#paths.failures), this.#journal.retry?.failures_done ?? 0);
  }

  get #earlier_rows(): string {
    return this.#format.write === undefined ? this.#output : this.#paths.rows;
  }

  /** Gives what #write_rows does. */
  async #write_output(): Promise<Digest | undefined> {
    let written: Digest | undefined;
    const { part, failures, new_failures } = this.#paths;
    const { retry, rows, row_bytes: bytes, rows_sha256: sha256 } = this.#journal;
    // If every image failed again, the stored rows are complete.
    if (retry === undefined || rows > retry.rows) written = await this.#write_rows({ bytes, sha256 });
    else await rm(part, { force: true });
    if (retry !== undefined && (await exists(new_failures))) await rename_durably(new_failures, failures);
    return written;
  }

  /** Gives the digest of a file that isn't the rows one after the other. */
  async #write_rows(digest: Digest): Promise<Digest | undefined> {
    const { part, names } = this.#paths;
    const { write, has_no_names } = this.#format;
    if (write === undefined) {
      // A run that was interrupted between renaming and recording it has nothing left to rename.
      const is_named = !(await exists(part));
      await check_unchanged(is_named ? this.#output : part, digest);
      if (!is_named) await rename_durably(part, this.#output);
      return undefined;
    }
    await check_unchanged(part, digest);
    const rows = () => this.#decoded(part);
    const { shape, rows: count, identity: about } = this.#journal;
    const written = await write_verified(this.#output, (path) =>
      write(path, { ...shape, rows, count, about }),
    );
    if (has_no_names) await write_verified(names, (path) => write_file(path, name_lines(rows())));
    return written;
  }

  /** Removes the files that aren't needed once the output is complete. */
  async #tidy(): Promise<void> {
    const { part, rows, failures, new_failures } = this.#paths;
    const has_failures = this.#journal.failures > 0;
    if (has_failures && this.#format.write !== undefined && (await exists(part)))
      await rename_durably(part, rows);
    const unneeded = has_failures ? [part, new_failures] : [part, rows, failures, new_failures];
    for (const path of unneeded) await rm(path, { force: true });
  }

  /** All rows. @throws VitMsnError IO if their number differs from the journal's. */
  async *#decoded(path: string): AsyncGenerator<Row> {
    let count = 0;
    for await (const { bytes } of this.#rows_of(path)) {
      count++;
      yield decode_row(bytes);
    }
    if (count !== this.#journal.rows) throw damaged(path);
  }

  async *#rows_of(path: string): AsyncGenerator<StoredRow> {
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
      throw new VitMsnError(
        "IO",
        `${this.#paths.journal} was changed by another process during the run. Start again with --restart.`,
      );
    const journal = { ...this.#journal, ...change };
    const text = journal_text(journal);
    await write_durably(this.#paths.journal, text);
    this.#written = text;
    this.#journal = journal;
  }
}

const EMPTY_SHA256 = createHash("sha256").digest("hex");

/** The progress of a run that hasn't computed anything. */
const INITIAL: Progress = {
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

/** A file that grows, and the digest of its bytes. */
class GrowingFile {
  readonly #file: FileHandle;
  readonly #hash: Hash;
  #bytes: number;

  private constructor(file: FileHandle, hash: Hash, bytes: number) {
    this.#file = file;
    this.#hash = hash;
    this.#bytes = bytes;
  }

  /** Cuts off what follows the bytes in the journal. @throws VitMsnError IO if these aren't there. */
  static async open(path: string, { bytes, sha256 }: Digest): Promise<GrowingFile> {
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
          `${path} is shorter than its journal says: it was changed or truncated. Start again with --restart.`,
        );
      }
      const hash = createHash("sha256");
      await hash_file(path, bytes, hash);
      if (hash.copy().digest("hex") !== sha256) throw damaged(path);
      await file.truncate(bytes);
      return new GrowingFile(file, hash, bytes);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get digest(): Digest {
    return { bytes: this.#bytes, sha256: this.#hash.copy().digest("hex") };
  }

  /** The pieces are on the disk once this resolves; if it fails, nothing was appended. */
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

/** The error for a name or label that is too long for the output's format. */
export function text_too_long(what: string, text: string, max_text: number): VitMsnError {
  return new VitMsnError(
    "UNSUPPORTED",
    `The ${what} ${JSON.stringify(text.slice(0, 60))}... has ${text.length} characters, more than this format's limit of ` +
      `${max_text}; use .jsonl, .csv or .parquet.`,
  );
}

/** Writes a file under a temporary name, and renames it if it reads back as written. */
async function write_verified(path: string, write: (temporary: string) => Promise<Digest>): Promise<Digest> {
  const temporary = temporary_path(path);
  try {
    const written = await write(temporary);
    const { bytes, sha256 } = await digest_of(temporary);
    if (bytes !== written.bytes || sha256 !== written.sha256)
      throw new VitMsnError(
        "IO",
        `${path} can't be written: reading it back gave different bytes. Check the disk, then run the same command again.`,
      );
    await rename_durably(temporary, path);
    return written;
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

async function check_unchanged(path: string, expected: Digest): Promise<void> {
  if (!(await is_unchanged(path, expected))) throw damaged(path);
}

async function is_unchanged(path: string, expected: Digest): Promise<boolean> {
  try {
    const info = await stat(path);
    if (!info.isFile() || info.size !== expected.bytes) return false;
    return (await digest_of(path)).sha256 === expected.sha256;
  } catch (error) {
    if (is_code(error, "ENOENT")) return false;
    throw file_error(error, path);
  }
}

/** Removes temporary files that killed runs left. */
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

async function* skip_first<T>(items: AsyncIterable<T>, count: number): AsyncGenerator<T> {
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

/** One JSON string a line: a file's name may contain a line feed. */
async function* name_lines(rows: AsyncIterable<Row>): AsyncGenerator<Uint8Array> {
  for await (const { image } of rows) yield Buffer.from(`${JSON.stringify(image)}\n`);
}
