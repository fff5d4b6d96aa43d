import { createHash, randomUUID } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { mkdir, open, rename, rm } from "./disk.ts";
import { is_code } from "./errors.ts";

/** The length and hash of a file. */
export interface Digest {
  bytes: number;
  sha256: string;
}

/** Files are hashed in pieces of this size. */
const READ_BYTES = 1 << 20;

/** A unique name next to `path`; `is_temporary` recognises such files when a killed process has left them. */
export function temporary_path(path: string): string {
  return `${path}.${randomUUID()}.tmp`;
}

const TEMPORARY = /\.[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\.tmp$/;

/** Whether `name` is a temporary file of one of `files`. */
export function is_temporary(name: string, files: readonly string[]): boolean {
  return files.includes(name.replace(TEMPORARY, "")) && TEMPORARY.test(name);
}

/** Writes a new file, which is on the disk once this resolves. */
export async function write_file(
  path: string,
  pieces: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): Promise<Digest> {
  const hash = createHash("sha256");
  const file = await open(path, "w");
  let bytes = 0;
  try {
    for await (const piece of pieces) {
      await write_all(file, piece, bytes);
      hash.update(piece);
      bytes += piece.byteLength;
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return { bytes, sha256: hash.digest("hex") };
}

/** Writes all bytes, also if the system writes fewer at a time. */
export async function write_all(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.byteLength - done, position + done);
    done += bytesWritten;
  }
}

/** Replaces a file by `text` atomically: readers find the old or the new content, even after a power cut. */
export async function write_durably(path: string, text: string): Promise<void> {
  const temporary = temporary_path(path);
  try {
    await write_file(temporary, [Buffer.from(text)]);
    await rename_durably(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

/** Renames a file and waits until the new name is on the disk. */
export async function rename_durably(from: string, to: string): Promise<void> {
  await rename(from, to);
  await sync_folder(dirname(to));
}

/** Errors of file systems that can't sync folders, and of folders that may be written but not read. */
const NOT_SYNCED = ["EINVAL", "ENOTSUP", "ENOSYS", "EBADF", "EACCES", "EPERM"];

/** Waits until the names in a folder are on the disk, if the file system supports it. */
export async function sync_folder(path: string): Promise<void> {
  // Windows can't open a folder, and doesn't need it.
  if (process.platform === "win32") return;
  let folder: FileHandle | undefined;
  try {
    folder = await open(path, "r");
    await folder.sync();
  } catch (error) {
    if (!is_code(error, ...NOT_SYNCED)) throw error;
  } finally {
    await folder?.close();
  }
}

/** Creates a folder and its parents. */
export async function make_folder(path: string): Promise<void> {
  const whole = resolve(path);
  const first = await mkdir(whole, { recursive: true });
  if (first === undefined) return;
  for (let made = whole; made.length >= first.length; made = dirname(made)) await sync_folder(dirname(made));
}

/** The digest of a file's first `limit` bytes. */
export async function digest_of(path: string, limit = Number.POSITIVE_INFINITY): Promise<Digest> {
  const hash = createHash("sha256");
  const bytes = await hash_file(path, limit, hash);
  return { bytes, sha256: hash.digest("hex") };
}

/** Adds a file's first `limit` bytes to a hash. @returns their number. */
export async function hash_file(
  path: string,
  limit: number,
  hash: { update(bytes: Uint8Array): unknown },
): Promise<number> {
  const file = await open(path, "r");
  try {
    const piece = Buffer.allocUnsafe(READ_BYTES);
    let done = 0;
    while (done < limit) {
      const { bytesRead } = await file.read(piece, 0, Math.min(READ_BYTES, limit - done), done);
      if (bytesRead === 0) break;
      hash.update(piece.subarray(0, bytesRead));
      done += bytesRead;
    }
    return done;
  } finally {
    await file.close();
  }
}
