import { randomUUID } from "node:crypto";
import { join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { VitMsnError } from "../../errors.ts";
import { mkdir, readdir, rename, rm, stat } from "../../files/disk.ts";
import { make_folder, rename_durably, sync_folder } from "../../files/durable.ts";
import { is_code } from "../../files/errors.ts";
import { with_locked_folder } from "../../files/lock.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { FoundFile, OutputFolder } from "./folder_types.ts";

/** The end of a folder's name while it is being written, or removed. */
const TEMPORARY = ".incomplete";

/** Holds the folder of checkpoints while `action` runs: two trainings can't write into it. @throws VitMsnError IO where another one does. */
export function hold_output_folder<T>(
  directory: SaveDirectory,
  signal: AbortSignal | undefined,
  action: () => Promise<T>,
): Promise<T> {
  return with_locked_folder(folder_path(directory), signal, action);
}

/** The folder of checkpoints, made if need be. Whoever writes holds it. */
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

/** What a killed run didn't finish. */
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

/** Renamed first: a folder that is half removed must not look whole, even after a power cut. */
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

/** The folders in a folder, by name, and all files below each. */
export async function list_class_folders(directory: SaveDirectory): Promise<Map<string, FoundFile[]>> {
  const root = folder_path(directory);
  return guard(root, async () => {
    await check_folder(root, "the classes");
    const folders = new Map<string, FoundFile[]>();
    for (const name of (await list_folders(root)).sort()) {
      if (!name.startsWith(".")) folders.set(name, await files_below(join(root, name), join(root, name)));
    }
    return folders;
  });
}

/** All files below a folder, at any depth. */
export async function list_files(directory: SaveDirectory): Promise<FoundFile[]> {
  const root = folder_path(directory);
  return guard(root, async () => {
    await check_folder(root, "the pictures");
    return files_below(root, root);
  });
}

async function check_folder(path: string, content: string): Promise<void> {
  if ((await stat(path)).isDirectory()) return;
  throw new VitMsnError("INVALID_ARGUMENT", `${path} is a file; give the folder that holds ${content}.`);
}

async function files_below(root: string, folder: string): Promise<FoundFile[]> {
  const found: FoundFile[] = [];
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name.startsWith(".")) continue;
    const path = join(folder, entry.name);
    const kind = entry.isSymbolicLink() ? await stat(path) : entry;
    // A link to a folder may lead in a circle.
    if (kind.isDirectory() && !entry.isSymbolicLink()) found.push(...(await files_below(root, path)));
    else if (kind.isFile()) found.push({ path: relative(root, path).split(sep), file: path });
  }
  return found;
}

function folder_path(directory: SaveDirectory): string {
  if (directory instanceof URL) return fileURLToPath(directory);
  if (typeof directory === "string" && directory !== "")
    return directory.startsWith("file:") ? fileURLToPath(directory) : directory;
  throw new VitMsnError("INVALID_ARGUMENT", "A folder must be given as a path or a file: URL.");
}

/** The system's errors as ours. */
async function guard<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof VitMsnError || !(error instanceof Error) || !("syscall" in error)) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new VitMsnError(code === "ENOENT" ? "NOT_FOUND" : "IO", `${path}: ${error.message}.`, {
      cause: error,
      details: { code },
    });
  }
}
