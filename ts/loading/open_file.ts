import { map_file, open_address } from "./file_map.ts";
import { open_source } from "./source.ts";
import type { LoadOptions, RandomAccessFile } from "./types.ts";

/** A file by itself, as a checkpoint of another program. */
export type FileSource = string | URL | Blob | ArrayBuffer | Uint8Array;

/**
 * Opens one file: by its path or URL, or the bytes themselves. Nothing is read yet.
 * @throws VitMsnError NOT_FOUND, and what open_source throws.
 */
export async function open_file(source: FileSource, options: LoadOptions = {}): Promise<RandomAccessFile> {
  if (typeof source === "string" || source instanceof URL) return open_address(source, options, open_source);
  return map_file((source as Partial<File>).name || "The file", source, "A source");
}
