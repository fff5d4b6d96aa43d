import { dirname, join } from "node:path";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { readdir, rename, rm } from "../files/disk.ts";
import { make_folder, sync_folder, temporary_path, write_file } from "../files/durable.ts";
import { io_error } from "../files/errors.ts";
import { is_a } from "../is_a.ts";
import { path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import { file_url_path } from "./storage.node.ts";
import type { FilesToSave, SaveDirectory, SaveOptions } from "./storage_types.ts";

/**
 * Writes files into a folder, which is created if needed. Files are written under temporary names. Once all are on the
 * disk, they are renamed in the order of `files`, so that a failure leaves the previous files. Last, files of the folder
 * whose names match `old` are removed.
 */
export async function save_files(
  directory: SaveDirectory,
  files: FilesToSave,
  options: SaveOptions = {},
  old?: RegExp,
): Promise<void> {
  const folder = save_folder(directory);
  const written: { temporary: string; path: string }[] = [];
  try {
    await make_folder(folder);
    for (const [file, content] of Object.entries(files)) {
      const path = join(folder, ...path_segments(file, "file name", "INVALID_ARGUMENT"));
      const temporary = temporary_path(path);
      written.push({ temporary, path });
      const progress = new Progress(options.progress_callback, folder, file);
      await write_file(temporary, followed(content, progress, `Saving ${temporary}`, options.signal));
    }
    for (const { temporary, path } of written) {
      await rename(temporary, path);
      await sync_folder(dirname(path));
    }
    if (old !== undefined) await remove_old(folder, old);
  } catch (error) {
    await Promise.all(written.map(({ temporary }) => rm(temporary, { force: true }).catch(() => {})));
    throw io_error(`${folder} can't be written`, error);
  }
}

async function remove_old(folder: string, old: RegExp): Promise<void> {
  const names = (await readdir(folder)).filter((name) => old.test(name));
  for (const name of names) await rm(join(folder, name), { force: true });
  if (names.length > 0) await sync_folder(folder);
}

/** A file's content on its way to the disk. */
async function* followed(
  content: string | AsyncIterable<Uint8Array>,
  progress: Progress,
  what: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  let size = 0;
  progress.initiate();
  for await (const piece of typeof content === "string" ? [new TextEncoder().encode(content)] : content) {
    throw_if_aborted(signal, what);
    yield piece;
    size += piece.byteLength;
    progress.update(size, 0);
  }
  progress.done(size);
}

function save_folder(directory: SaveDirectory): string {
  if (is_a(directory, "URL")) return file_url_path(directory.href);
  if (typeof directory === "string" && directory !== "" && !directory.includes("\0"))
    return directory.startsWith("file:") ? file_url_path(directory) : directory;
  throw new VitMsnError("INVALID_ARGUMENT", "The folder to save into must be a path or a file: URL.");
}
