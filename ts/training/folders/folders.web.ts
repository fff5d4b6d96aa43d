import { throw_if_aborted, VitMsnError } from "../../errors.ts";
import { by_code_points, is_ignored, is_special_folder, SPECIAL_FOLDER } from "../../files/file_names.ts";
import type { SkippedFiles } from "../../files/skipped_files.ts";
import type { ImageInput } from "../../image/raw_image.ts";
import { is_a } from "../../is_a.ts";
import { check_can_write } from "../../loading/file_writer.web.ts";
import { type FileSource, open_file } from "../../loading/open_file.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { RandomAccessFile } from "../../loading/types.ts";
import type { FolderContent, FoundFile, OutputFolder } from "./folder_types.ts";

/**
 * Locks the folder of checkpoints while `action` runs, against runs of this page, its Workers and other tabs of its
 * origin. Folders that the browser can't identify, and browsers without locks, run unlocked.
 * @throws VitMsnError IO if another run holds it, UNSUPPORTED where files can't be written.
 */
export async function hold_output_folder<T>(
  directory: SaveDirectory,
  signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  const folder = handle_of(directory);
  check_can_write(folder);
  const id = await identity_of(folder);
  throw_if_aborted(signal, `Opening ${folder.name}`);
  if (id === undefined || navigator.locks === undefined) return action();
  // Awaited inside, since the lock is held until the callback's promise settles.
  return navigator.locks.request(`vit-msn: ${id}`, { ifAvailable: true }, async (lock) => {
    if (lock !== null) return await action();
    throw new VitMsnError(
      "IO",
      `${folder.name || "The folder"} is already being written by another run in this page or in another tab. Wait for it, or end it.`,
      { details: { folder: folder.name } },
    );
  });
}

/** What is the same for all handles of a folder: its path in the origin's file system, or the browser's own identifier. */
async function identity_of(
  folder: FileSystemDirectoryHandle & { getUniqueId?: () => Promise<string> },
): Promise<string | undefined> {
  const root = await navigator.storage?.getDirectory().catch(() => undefined);
  const path = await root?.resolve(folder).catch(() => null);
  if (path) return JSON.stringify(path);
  return folder.getUniqueId?.().catch(() => undefined);
}

/**
 * The folder of checkpoints. Folders can't be renamed here, so a checkpoint's last file marks it as complete.
 */
export async function open_output_folder(directory: SaveDirectory): Promise<OutputFolder> {
  const root = handle_of(directory);
  const remove = (name: string) =>
    root.removeEntry(name, { recursive: true }).catch((error: unknown) => {
      if (!is_a(error, "DOMException") || error.name !== "NotFoundError") throw error;
    });
  return {
    name: root.name,
    list: () => guard(root.name, () => list_folders(root)),
    write: (name, write) =>
      guard(name, async () => {
        await remove(name);
        try {
          await write(await root.getDirectoryHandle(name, { create: true }));
        } catch (error) {
          await remove(name);
          throw error;
        }
      }),
    remove: (name) => guard(name, () => remove(name)),
    source: (name) => guard(name, async () => files_of(await root.getDirectoryHandle(name))),
  };
}

async function list_folders(root: FileSystemDirectoryHandle): Promise<string[]> {
  const names: string[] = [];
  for await (const [name, handle] of root.entries()) if (handle.kind === "directory") names.push(name);
  return names;
}

async function files_of(folder: FileSystemDirectoryHandle): Promise<Map<string, File>> {
  const files = new Map<string, File>();
  for await (const [name, handle] of folder.entries()) {
    if (handle.kind === "file") files.set(name, await (handle as FileSystemFileHandle).getFile());
  }
  return files;
}

/** The direct content of a folder. */
export async function list_folder(directory: SaveDirectory): Promise<FolderContent> {
  const root = handle_of(directory);
  return guard(root.name, async () => {
    const content: FolderContent = { folders: [], files: [] };
    for (const [name, { kind }] of await entries(root))
      (kind === "directory" ? content.folders : content.files).push(name);
    return content;
  });
}

/** A folder in a folder. */
export async function child_folder(directory: SaveDirectory, name: string): Promise<SaveDirectory> {
  const root = handle_of(directory);
  return guard(root.name, () => root.getDirectoryHandle(name));
}

/** The files below a folder, sorted by the code points of their names. */
export function walk_files(directory: SaveDirectory, skipped: SkippedFiles): AsyncGenerator<FoundFile> {
  return walk_below(handle_of(directory), [], skipped);
}

/** Whether a source is a folder rather than a file. */
export async function is_folder(source: unknown): Promise<boolean> {
  return typeof (source as Partial<FileSystemDirectoryHandle> | null)?.getDirectoryHandle === "function";
}

/** A file doesn't know its folder here. */
export function parent_folder(_source: unknown): SaveDirectory | undefined {
  return undefined;
}

/** Opens a list or shard. */
export function open_data_file(source: FileSource, signal?: AbortSignal): Promise<RandomAccessFile> {
  return open_file(source, signal && { signal });
}

/** A file by its path below a folder; undefined if there is none. */
export async function find_file(directory: SaveDirectory, path: string): Promise<ImageInput | undefined> {
  const names = path.split("/").filter((name) => name !== "" && name !== ".");
  const name = names.pop();
  if (name === undefined) return undefined;
  try {
    let folder = handle_of(directory);
    for (const part of names) folder = await folder.getDirectoryHandle(part);
    return await (await folder.getFileHandle(name)).getFile();
  } catch (error) {
    // TypeMismatchError: a folder of that name. TypeError: "..", which can't be opened.
    const is_missing = is_a(error, "DOMException") && /^(NotFound|TypeMismatch)/.test(error.name);
    if (is_missing || error instanceof TypeError) return undefined;
    throw error;
  }
}

async function* walk_below(
  folder: FileSystemDirectoryHandle,
  path: readonly string[],
  skipped: SkippedFiles,
): AsyncGenerator<FoundFile> {
  for (const [name, handle] of await guard(folder.name, () => entries(folder))) {
    const below = [...path, name];
    if (handle.kind === "file") {
      const file = await guard(name, () => (handle as FileSystemFileHandle).getFile());
      yield { path: below, file, is_broken: false };
    } else if (is_special_folder(name)) skipped.add_named(SPECIAL_FOLDER, below.join("/"));
    else yield* walk_below(handle as FileSystemDirectoryHandle, below, skipped);
  }
}

async function entries(folder: FileSystemDirectoryHandle): Promise<[string, FileSystemHandle][]> {
  const found: [string, FileSystemHandle][] = [];
  for await (const entry of folder.entries()) if (!is_ignored(entry[0])) found.push(entry);
  return found.sort(([a], [b]) => by_code_points(a, b));
}

function handle_of(directory: SaveDirectory): FileSystemDirectoryHandle {
  if (
    typeof directory !== "string" &&
    !is_a(directory, "URL") &&
    typeof directory?.getDirectoryHandle === "function"
  )
    return directory;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    "Local folders aren't available here; pass a FileSystemDirectoryHandle, from showDirectoryPicker() or navigator.storage.getDirectory().",
  );
}

/** Converts the platform's errors to VitMsnError. */
async function guard<T>(name: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!is_a(error, "DOMException")) throw error;
    throw new VitMsnError(error.name === "NotFoundError" ? "NOT_FOUND" : "IO", `${name}: ${error.message}`, {
      cause: error,
      details: { code: error.name },
    });
  }
}
