import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
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
  const written: WrittenFile[] = [];
  try {
    for (const [file, content] of Object.entries(files)) {
      const progress = new Progress(options.progress_callback, directory.name, file);
      await naming(file, () => write_file(directory, file, content, progress, options.signal, written));
    }
    for (const { file, stream } of written) await naming(file, () => stream.close());
  } catch (error) {
    await Promise.all(written.map((file) => discard(directory, file)));
    throw error;
  }
  if (old !== undefined) await remove_old(directory, old);
}

/** A file whose content is written, but not visible before its stream is closed. */
interface WrittenFile {
  file: string;
  stream: FileSystemWritableFileStream;
  is_new: boolean;
}

/** Names the file in errors of the browser. */
async function naming(file: string, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (cause) {
    if (!(cause instanceof DOMException)) throw cause;
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
  const is_new = !(await has_file(directory, file));
  const stream = await (await directory.getFileHandle(file, { create: true })).createWritable();
  written.push({ file, stream, is_new });
  let size = 0;
  progress.initiate();
  for await (const piece of typeof content === "string" ? [new TextEncoder().encode(content)] : content) {
    throw_if_aborted(signal, `Saving ${file}`);
    await stream.write(piece as Uint8Array<ArrayBuffer>);
    size += piece.byteLength;
    progress.update(size, 0);
  }
  progress.done(size);
}

async function discard(
  directory: FileSystemDirectoryHandle,
  { file, stream, is_new }: WrittenFile,
): Promise<void> {
  await stream.abort().catch(() => {});
  // Getting the handle created an empty file; an existing file still has its content.
  if (is_new) await directory.removeEntry(file).catch(() => {});
}

async function remove_old(directory: FileSystemDirectoryHandle, old: RegExp): Promise<void> {
  const names: string[] = [];
  for await (const name of directory.keys()) if (old.test(name)) names.push(name);
  for (const name of names) await directory.removeEntry(name);
}

async function has_file(directory: FileSystemDirectoryHandle, file: string): Promise<boolean> {
  return directory.getFileHandle(file).then(
    () => true,
    () => false,
  );
}
