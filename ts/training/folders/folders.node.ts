import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { VitMsnError } from "../../errors.ts";
import { mkdir, readdir, rename, rm } from "../../files/disk.ts";
import { make_folder, rename_durably, sync_folder } from "../../files/durable.ts";
import { is_code } from "../../files/errors.ts";
import { with_locked_folder } from "../../files/lock.ts";
import type { SkippedFiles } from "../../files/skipped_files.ts";
import { read_folder, walk } from "../../files/walk.ts";
import { is_a, is_error } from "../../is_a.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
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
