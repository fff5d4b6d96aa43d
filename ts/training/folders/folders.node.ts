import { randomUUID } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { fileURLToPath } from "node:url";
import { VitMsnError } from "../../errors.ts";
import { mkdir, open, readdir, rename, rm, stat } from "../../files/disk.ts";
import { make_folder, rename_durably, sync_folder } from "../../files/durable.ts";
import { is_code } from "../../files/errors.ts";
import { encode_name } from "../../files/file_names.ts";
import { with_locked_folder } from "../../files/lock.ts";
import type { SkippedFiles } from "../../files/skipped_files.ts";
import { unsupported_scheme } from "../../files/url_scheme.ts";
import { read_folder, walk } from "../../files/walk.ts";
import type { ImageInput } from "../../image/raw_image.ts";
import { is_a, is_error } from "../../is_a.ts";
import { check_range } from "../../loading/bytes.ts";
import { type FileSource, open_file } from "../../loading/open_file.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { RandomAccessFile } from "../../loading/types.ts";
import type { FolderContent, FoundFile, OutputFolder } from "./folder_types.ts";

/** The suffix of a folder's name while it is being written or removed. */
const TEMPORARY = ".incomplete";

/**
 * Locks the folder of checkpoints while `action` runs, so that two runs can't write into it. @throws
 * VitMsnError IO if another run holds it.
 */
export function hold_output_folder<T>(
  directory: SaveDirectory,
  signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  return with_locked_folder(folder_path(directory), signal, action);
}

/** The folder of checkpoints, created if necessary. Writers must hold its lock. */
export async function open_output_folder(directory: SaveDirectory): Promise<OutputFolder> {
  const root = folder_path(directory);
  await guard(root, () => make_folder(root));
  await guard(root, () => remove_leftovers(root));
  return {
    name: root,
    list: () => guard(root, () => list_folders(root)),
    write: (name, write) => guard(join(root, name), () => write_folder(root, name, write)),
    remove: (name) => guard(join(root, name), () => remove_folder(root, name)),
    source: async (name) => join(root, name),
  };
}

async function list_folders(root: string): Promise<string[]> {
  const entries = await readdir(root, { withFileTypes: true });
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

/** Removes the unfinished folders of killed runs. */
async function remove_leftovers(root: string): Promise<void> {
  const left = (await list_folders(root)).filter((name) => name.startsWith(".") && name.endsWith(TEMPORARY));
  await Promise.all(left.map((name) => rm(join(root, name), { recursive: true, force: true })));
}

async function write_folder(
  root: string,
  name: string,
  write: (directory: SaveDirectory) => Promise<void>,
): Promise<void> {
  const temporary = temporary_path(root, name);
  try {
    await mkdir(temporary);
    await write(temporary);
    await sync_folder(temporary);
    await remove_folder(root, name);
    await rename_durably(temporary, join(root, name));
  } catch (error) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {});
    throw error;
  }
}

/** Renames the folder first: a partly removed folder must not look complete, even after a power cut. */
async function remove_folder(root: string, name: string): Promise<void> {
  const temporary = temporary_path(root, name);
  try {
    await rename(join(root, name), temporary);
  } catch (error) {
    if (is_code(error, "ENOENT")) return;
    throw error;
  }
  await sync_folder(root);
  await rm(temporary, { recursive: true, force: true });
}

function temporary_path(root: string, name: string): string {
  return join(root, `.${name}.${randomUUID()}${TEMPORARY}`);
}

/** The direct content of a folder. */
export async function list_folder(directory: SaveDirectory): Promise<FolderContent> {
  return read_folder(folder_path(directory));
}

/** A folder in a folder. */
export async function child_folder(directory: SaveDirectory, name: string): Promise<SaveDirectory> {
  return join(folder_path(directory), name);
}

/** The files below a folder, sorted. */
export function walk_files(directory: SaveDirectory, skipped: SkippedFiles): AsyncGenerator<FoundFile> {
  return walk(folder_path(directory), { skipped });
}

/** Whether a source is a folder rather than a file. */
export async function is_folder(source: unknown): Promise<boolean> {
  if (!is_a(source, "URL") && typeof source !== "string") return false;
  const is_remote = /^(?:https?|data|blob):/i.test(String(source));
  if (is_remote) return false;
  return (await stat(encode_name(folder_path(source))).catch(() => undefined))?.isDirectory() ?? false;
}

/** The folder that holds a file; undefined for a file at a URL or in memory. */
export function parent_folder(source: unknown): SaveDirectory | undefined {
  if (!is_a(source, "URL") && typeof source !== "string") return undefined;
  return /^(?:https?|data|blob):/i.test(String(source)) ? undefined : dirname(folder_path(source));
}

/** Opens a list or shard: a local file, or what open_file accepts. */
export async function open_data_file(source: FileSource, signal?: AbortSignal): Promise<RandomAccessFile> {
  if (parent_folder(source) === undefined) return open_file(source, signal && { signal });
  const path = folder_path(source as string | URL);
  const unsupported = unsupported_scheme(path);
  if (unsupported !== undefined) throw unsupported;
  return guard(path, async () => {
    const found = await stat(encode_name(path)).catch((error: unknown) => {
      if (!is_code(error, "ENOENT", "ENOTDIR")) throw error;
      throw new VitMsnError("NOT_FOUND", `There is no file ${path}; check the path.`, { cause: error });
    });
    // Others might never end, or wait forever.
    if (!found.isFile()) throw new VitMsnError("IO", `${path} can't be read: it isn't a file.`);
    const handle = await open(encode_name(path));
    return new LocalFile(path, handle, found.size);
  });
}

class LocalFile implements RandomAccessFile {
  readonly name: string;
  readonly size: number;
  readonly #handle: FileHandle;

  constructor(name: string, handle: FileHandle, size: number) {
    this.name = name;
    this.size = size;
    this.#handle = handle;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    check_range(this.name, this.size, offset, length);
    const bytes = new Uint8Array(length);
    return guard(this.name, async () => {
      for (let done = 0; done < length; ) {
        const { bytesRead } = await this.#handle.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) check_range(this.name, offset + done, offset, length);
        done += bytesRead;
      }
      return bytes;
    });
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

/** A file by its path below a folder, or by an absolute one; undefined if there is none. */
export async function find_file(directory: SaveDirectory, path: string): Promise<ImageInput | undefined> {
  const file = isAbsolute(path) ? path : join(folder_path(directory), path);
  return (await stat(encode_name(file)).catch(() => undefined))?.isFile() ? file : undefined;
}

function folder_path(directory: SaveDirectory): string {
  if (is_a(directory, "URL")) return fileURLToPath(directory);
  if (typeof directory === "string" && directory !== "")
    return directory.startsWith("file:") ? fileURLToPath(directory) : directory;
  throw new VitMsnError("INVALID_ARGUMENT", "A folder must be given as a path or a file: URL.");
}

/** Converts the system's errors to VitMsnError. */
async function guard<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof VitMsnError || !is_error(error) || !("syscall" in error)) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new VitMsnError(code === "ENOENT" ? "NOT_FOUND" : "IO", `${path}: ${error.message}.`, {
      cause: error,
      details: { code },
    });
  }
}
