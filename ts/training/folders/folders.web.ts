import { VitMsnError } from "../../errors.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { FoundFile, OutputFolder } from "./folder_types.ts";

/** Nobody else is kept out here: a page that trains twice into one folder has to see to it itself. */
export function hold_output_folder<T>(
  _directory: SaveDirectory,
  _signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  return action();
}

/** The folder of checkpoints. Folders can't be renamed here: what marks a checkpoint as whole is its last file. */
export async function open_output_folder(directory: SaveDirectory): Promise<OutputFolder> {
  const root = handle_of(directory);
  const remove = (name: string) =>
    root.removeEntry(name, { recursive: true }).catch((error: unknown) => {
      if (!(error instanceof DOMException) || error.name !== "NotFoundError") throw error;
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

/** The folders in a folder, by name, and all files below each. */
export async function list_class_folders(directory: SaveDirectory): Promise<Map<string, FoundFile[]>> {
  const root = handle_of(directory);
  return guard(root.name, async () => {
    const folders = new Map<string, FoundFile[]>();
    for (const name of (await list_folders(root)).sort()) {
      if (!name.startsWith("."))
        folders.set(name, await files_below(await root.getDirectoryHandle(name), []));
    }
    return folders;
  });
}

/** All files below a folder, at any depth. */
export async function list_files(directory: SaveDirectory): Promise<FoundFile[]> {
  const root = handle_of(directory);
  return guard(root.name, () => files_below(root, []));
}

async function files_below(folder: FileSystemDirectoryHandle, path: string[]): Promise<FoundFile[]> {
  const found: FoundFile[] = [];
  const entries: [string, FileSystemHandle][] = [];
  for await (const entry of folder.entries()) entries.push(entry);
  for (const [name, handle] of entries.sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (name.startsWith(".")) continue;
    const below = [...path, name];
    if (handle.kind === "directory")
      found.push(...(await files_below(handle as FileSystemDirectoryHandle, below)));
    else found.push({ path: below, file: await (handle as FileSystemFileHandle).getFile() });
  }
  return found;
}

function handle_of(directory: SaveDirectory): FileSystemDirectoryHandle {
  if (
    typeof directory !== "string" &&
    !(directory instanceof URL) &&
    typeof directory?.getDirectoryHandle === "function"
  )
    return directory;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    "There are no local folders here: give a FileSystemDirectoryHandle, from showDirectoryPicker() or navigator.storage.getDirectory().",
  );
}

/** The platform's errors as ours. */
async function guard<T>(name: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    throw new VitMsnError(error.name === "NotFoundError" ? "NOT_FOUND" : "IO", `${name}: ${error.message}`, {
      cause: error,
      details: { code: error.name },
    });
  }
}
