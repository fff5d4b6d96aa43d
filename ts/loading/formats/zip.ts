import { VitMsnError } from "../../errors.ts";
import { locate_data, read_directory, type ZipEntry, type ZipFile } from "../../files/zip_directory.ts";
import { decode_utf8 } from "../bytes.ts";
import type { RandomAccessFile } from "../types.ts";

const MAX_DIRECTORY_BYTES = 16 * 1024 * 1024;

/** A stored member. */
export interface StoredEntry extends ZipEntry {
  /** Its name. */
  text: string;
}

/**
 * Lists the members of a zip file by torch.save: nothing compressed, nothing encrypted.
 * Everything else is refused, so that no member can be larger than its file.
 */
export async function read_zip(file: RandomAccessFile): Promise<Map<string, StoredEntry>> {
  const entries = new Map<string, StoredEntry>();
  for (const entry of await read_directory(zip_file(file), MAX_DIRECTORY_BYTES)) {
    const name = decode_utf8(entry.name);
    if (name === undefined) throw invalid(file.name, "has an entry whose name isn't UTF-8");
    if (entries.has(name)) throw invalid(file.name, `lists ${JSON.stringify(name)} twice`);
    check_storage(entry, JSON.stringify(name), file.name);
    entries.set(name, { ...entry, text: name });
  }
  return entries;
}

/** Where a member's data starts. */
export function locate_entry(file: RandomAccessFile, entry: ZipEntry): Promise<number> {
  return locate_data(zip_file(file), entry);
}

function zip_file(file: RandomAccessFile): ZipFile {
  return {
    size: file.size,
    read: (offset, length) => file.read(offset, length),
    damaged: (what) => invalid(file.name, what),
  };
}

function check_storage(entry: ZipEntry, name: string, file_name: string): void {
  if (entry.is_encrypted) throw invalid(file_name, `has an encrypted entry ${name}`);
  if (entry.method !== 0)
    throw invalid(file_name, `has a compressed entry ${name}; torch.save stores entries as they are`);
  if (entry.packed_size !== entry.size)
    throw invalid(file_name, `has an entry ${name} with two different sizes`);
}

function invalid(name: string, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${name} ${what}.`, { details: { file: name } });
}
