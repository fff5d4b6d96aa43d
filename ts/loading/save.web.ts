import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { check_can_write, type FileWriter, open_writer } from "./file_writer.web.ts";
import { path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import type { FilesToSave, SaveDirectory, SaveOptions } from "./storage_types.ts";

/**
 * Writes files into a directory handle: one that the user picked (showDirectoryPicker), or the origin's private file
 * system (`await navigator.storage.getDirectory()`). The files appear in their order once all are written; then files
 * whose names match `old` are removed.
 */
export async function save_files(
  directory: SaveDirectory,
  files: FilesToSave,
  options: SaveOptions = {},
  old?: RegExp,
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
  check_can_write(directory);
  const written: WrittenFile[] = [];
  try {
    for (const [file, content] of Object.entries(files)) {
      const progress = new Progress(options.progress_callback, directory.name, file);
      await naming(file, () => write_file(directory, file, content, progress, options.signal, written));
    }
    for (const { file, writer } of written) await naming(file, () => writer.close());
  } catch (error) {
    await Promise.all(written.map(({ writer }) => writer.abort()));
    throw error;
  }
  if (old !== undefined) await remove_old(directory, old);
}

/** A file whose content is written, but not visible before its writer is closed. */
interface WrittenFile {
  file: string;
  writer: FileWriter;
}

/** Names the file in errors of the browser. */
async function naming(file: string, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (cause) {
    if (!is_a(cause, "DOMException")) throw cause;
    throw new VitMsnError("IO", `${file} can't be written into the directory: ${cause.message}`, {
      cause,
      details: { file },
    });
  }
}

async function write_file(
  directory: FileSystemDirectoryHandle,
  file: string,
  content: string | AsyncIterable<Uint8Array>,
  progress: Progress,
  signal: AbortSignal | undefined,
  written: WrittenFile[],
): Promise<void> {
  path_segments(file, "file name", "INVALID_ARGUMENT");
  throw_if_aborted(signal, `Saving ${file}`);
  const writer = await open_writer(directory, file);
  written.push({ file, writer });
  let size = 0;
  progress.initiate();
  for await (const piece of typeof content === "string" ? [new TextEncoder().encode(content)] : content) {
    throw_if_aborted(signal, `Saving ${file}`);
    await writer.write(piece as Uint8Array<ArrayBuffer>);
    size += piece.byteLength;
    progress.update(size, 0);
  }
  progress.done(size);
}

async function remove_old(directory: FileSystemDirectoryHandle, old: RegExp): Promise<void> {
  const names: string[] = [];
  for await (const name of directory.keys()) if (old.test(name)) names.push(name);
  for (const name of names) await directory.removeEntry(name);
}
