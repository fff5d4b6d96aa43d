import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import type { FilesToSave, SaveDirectory, SaveOptions } from "./storage_types.ts";

/**
 * Writes files into a directory handle: one that the user picked (showDirectoryPicker), or the origin's private file
 * system (`await navigator.storage.getDirectory()`). Each file appears when it is complete.
 */
export async function save_files(
  directory: SaveDirectory,
  files: FilesToSave,
  options: SaveOptions = {},
): Promise<void> {
  if (
    typeof directory === "string" ||
    is_a(directory, "URL") ||
    typeof directory?.getFileHandle !== "function"
  ) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      "Local folders aren't available here: pass a FileSystemDirectoryHandle, from showDirectoryPicker() or navigator.storage.getDirectory().",
    );
  }
  for (const [file, content] of Object.entries(files)) {
    const progress = new Progress(options.progress_callback, directory.name, file);
    try {
      await write_file(directory, file, content, progress, options.signal);
    } catch (cause) {
      if (!(cause instanceof DOMException)) throw cause;
      throw new VitMsnError("IO", `${file} can't be written into the directory: ${cause.message}`, {
        cause,
        details: { file },
      });
    }
  }
}

async function write_file(
  directory: FileSystemDirectoryHandle,
  file: string,
  content: string | AsyncIterable<Uint8Array>,
  progress: Progress,
  signal: AbortSignal | undefined,
): Promise<void> {
  path_segments(file, "file name", "INVALID_ARGUMENT");
  throw_if_aborted(signal, `Saving ${file}`);
  const is_new = !(await has_file(directory, file));
  const stream = await (await directory.getFileHandle(file, { create: true })).createWritable();
  let size = 0;
  try {
    progress.initiate();
    for await (const piece of typeof content === "string" ? [new TextEncoder().encode(content)] : content) {
      throw_if_aborted(signal, `Saving ${file}`);
      await stream.write(piece as Uint8Array<ArrayBuffer>);
      size += piece.byteLength;
      progress.update(size, 0);
    }
    await stream.close();
    progress.done(size);
  } catch (error) {
    await stream.abort().catch(() => {});
    // Getting the handle created an empty file; an existing file still has its content.
    if (is_new) await directory.removeEntry(file).catch(() => {});
    throw error;
  }
}

async function has_file(directory: FileSystemDirectoryHandle, file: string): Promise<boolean> {
  return directory.getFileHandle(file).then(
    () => true,
    () => false,
  );
}
