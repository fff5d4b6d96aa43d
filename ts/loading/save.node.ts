import { randomUUID } from "node:crypto";
import { mkdir, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { io_error } from "../files/errors.ts";
import { path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import { file_url_path } from "./storage.node.ts";
import type { FilesToSave, SaveDirectory, SaveOptions } from "./storage_types.ts";

/**
 * Writes files into a folder, made if need be. Everything is written under temporary names and renamed at the end,
 * so that a failure leaves the files that were there before.
 */
export async function save_files(
  directory: SaveDirectory,
  files: FilesToSave,
  options: SaveOptions = {},
): Promise<void> {
  const folder = save_folder(directory);
  const written: { temporary: string; path: string }[] = [];
  try {
    await mkdir(folder, { recursive: true });
    for (const [file, content] of Object.entries(files)) {
      const path = join(folder, ...path_segments(file, "file name", "INVALID_ARGUMENT"));
      const temporary = `${path}.${randomUUID()}.tmp`;
      written.push({ temporary, path });
      await write_file(
        temporary,
        content,
        new Progress(options.progress_callback, folder, file),
        options.signal,
      );
    }
    for (const { temporary, path } of written) await rename(temporary, path);
  } catch (error) {
    await Promise.all(written.map(({ temporary }) => rm(temporary, { force: true })));
    throw io_error(`${folder} can't be written`, error);
  }
}

async function write_file(
  path: string,
  content: string | AsyncIterable<Uint8Array>,
  progress: Progress,
  signal: AbortSignal | undefined,
): Promise<void> {
  const handle = await open(path, "w");
  let size = 0;
  try {
    progress.initiate();
    for await (const piece of typeof content === "string" ? [new TextEncoder().encode(content)] : content) {
      throw_if_aborted(signal, `Saving ${path}`);
      await handle.appendFile(piece);
      size += piece.byteLength;
      progress.update(size, 0);
    }
    progress.done(size);
  } finally {
    await handle.close();
  }
}

function save_folder(directory: SaveDirectory): string {
  if (directory instanceof URL) return file_url_path(directory.href);
  if (typeof directory === "string" && directory !== "")
    return directory.startsWith("file:") ? file_url_path(directory) : directory;
  throw new VitMsnError("INVALID_ARGUMENT", "The folder to save into must be a path or a file: URL.");
}
