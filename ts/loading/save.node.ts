import { dirname, join } from "node:path";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { rename, rm } from "../files/disk.ts";
import { make_folder, sync_folder, temporary_path, write_file } from "../files/durable.ts";
import { io_error } from "../files/errors.ts";
import { is_a } from "../is_a.ts";
import { path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import { file_url_path } from "./storage.node.ts";
import type { FilesToSave, SaveDirectory, SaveOptions } from "./storage_types.ts";

/**
 * Writes files into a folder, which is created if needed. Files are written under temporary names and renamed once they
 * are on the disk, so that a failure leaves the previous files.
 */
export async function save_files(
  directory: SaveDirectory,
  files: FilesToSave,
  options: SaveOptions = {},
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
    for (const { temporary, path } of written) await rename(temporary, path);
    for (const parent of new Set(written.map(({ path }) => dirname(path)))) await sync_folder(parent);
  } catch (error) {
    await Promise.all(written.map(({ temporary }) => rm(temporary, { force: true }).catch(() => {})));
    throw io_error(`${folder} can't be written`, error);
  }
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
  if (typeof directory === "string" && directory !== "")
    return directory.startsWith("file:") ? file_url_path(directory) : directory;
  throw new VitMsnError("INVALID_ARGUMENT", "The folder to save into must be a path or a file: URL.");
}
