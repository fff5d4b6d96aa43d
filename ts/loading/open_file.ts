import { is_a } from "../is_a.ts";
import { map_file, open_address } from "./file_map.ts";
import { open_source } from "./source.ts";
import type { LoadOptions, RandomAccessFile } from "./types.ts";

/** A single file, such as a checkpoint of another program. */
export type FileSource = string | URL | Blob | ArrayBuffer | Uint8Array;

/**
 * Opens one file, given by path or URL or as bytes. Nothing is read yet.
 * @throws VitMsnError NOT_FOUND, and the errors of open_source.
 */
export async function open_file(source: FileSource, options: LoadOptions = {}): Promise<RandomAccessFile> {
  if (typeof source === "string" || is_a(source, "URL")) return open_address(source, options, open_source);
  return map_file((source as Partial<File>).name || "The file", source, "A source");
}
