import { VitMsnError } from "../errors.ts";
import { type_name } from "../is_a.ts";

/** Writes a file that appears, or replaces an older one, when it is closed. */
export interface FileWriter {
  write(piece: Uint8Array<ArrayBuffer>): Promise<void>;
  close(): Promise<void>;
  /** Leaves no file that wasn't there before, even after close(). */
  abort(): Promise<void>;
}

/** What TypeScript's list of a page's types lacks: only Workers have the first. */
interface PrivateFile extends FileSystemFileHandle {
  createSyncAccessHandle?(): Promise<{
    write(bytes: Uint8Array, options: { at: number }): number;
    truncate(size: number): void;
    flush(): void;
    close(): void;
  }>;
  move?(directory: FileSystemDirectoryHandle, name: string): Promise<void>;
}

/**
 * Call before work whose result is to be written.
 * @throws VitMsnError UNSUPPORTED where this browser can't write into directories from this thread (Safari before 26, in a page).
 */
export function check_can_write(directory: FileSystemDirectoryHandle): void {
  // Another object may have files of any kind.
  if (type_name(directory) !== "FileSystemDirectoryHandle") return;
  const file = globalThis.FileSystemFileHandle?.prototype ?? {};
  if ("createWritable" in file || "createSyncAccessHandle" in file) return;
  throw new VitMsnError(
    "UNSUPPORTED",
    `${directory.name || "The directory"} can't be written from here: this browser has no createWritable. ` +
      "Run the model and save it in a Web Worker of yours, or update the browser (Safari 26 or newer).",
  );
}

export async function open_writer(directory: FileSystemDirectoryHandle, file: string): Promise<FileWriter> {
  const has_file = await directory.getFileHandle(file).then(
    () => true,
    () => false,
  );
  const handle = await directory.getFileHandle(file, { create: true });
  // Getting the handle created an empty file.
  const remove_new = async () => {
    if (!has_file) await directory.removeEntry(file).catch(() => {});
  };
  if (typeof handle.createWritable !== "function") return open_private_writer(directory, file, remove_new);
  const stream = await handle.createWritable();
  return {
    write: (piece) => stream.write(piece),
    close: () => stream.close(),
    abort: async () => {
      await stream.abort().catch(() => {});
      await remove_new();
    },
  };
}

/** By the handles that Workers have, which change a file in place: another file is written and then takes the name. */
async function open_private_writer(
  directory: FileSystemDirectoryHandle,
  file: string,
  remove_new: () => Promise<void>,
): Promise<FileWriter> {
  const part = `${file}.part`;
  const handle: PrivateFile = await directory.getFileHandle(part, { create: true });
  const access = await handle.createSyncAccessHandle?.();
  if (access === undefined || handle.move === undefined) {
    await directory.removeEntry(part).catch(() => {});
    await remove_new();
    throw new VitMsnError(
      "UNSUPPORTED",
      `${file} can't be written: this browser can't write into directories.`,
    );
  }
  access.truncate(0);
  let size = 0;
  return {
    write: async (piece) => {
      const written = access.write(piece, { at: size });
      if (written < piece.length)
        throw new VitMsnError("IO", `${file} can't be written: there is no room for it.`);
      size += written;
    },
    close: async () => {
      access.flush();
      access.close();
      await directory.removeEntry(file).catch(() => {});
      await handle.move?.(directory, file);
    },
    abort: async () => {
      access.close();
      await directory.removeEntry(part).catch(() => {});
      await remove_new();
    },
  };
}
