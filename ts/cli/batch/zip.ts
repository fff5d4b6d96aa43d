import type { FileHandle } from "node:fs/promises";
import { promisify } from "node:util";
import { inflateRaw } from "node:zlib";
import {
  crc32,
  DamagedArchive,
  decode_name,
  is_hidden_member,
  locate_data,
  read_directory,
  type ZipEntry,
  type ZipFile,
} from "../../files/index.ts";
import { is_image_name, VitMsnError } from "../../index.ts";
import { aborted, file_error } from "./errors.ts";
import type { ListedImage } from "./listed_image.ts";
import { type ArchiveReading, image_of, MAX_BYTES, type Member, short_member } from "./members.ts";
import { open_regular, read_exactly } from "./regular_file.ts";

/** For about half a million members. */
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;
const [STORED, DEFLATED] = [0, 8];
/** Other methods, for messages. */
const METHODS: Readonly<Record<number, string>> = {
  9: "Deflate64",
  12: "bzip2",
  14: "LZMA",
  93: "Zstandard",
  95: "xz",
};
const REGULAR = 0o100000;

const inflate = promisify(inflateRaw);

/** The images in a zip archive, in the order of its directory: one member is in memory at a time. */
export async function* zip_images(
  path: string,
  { signal, skipped, is_wanted }: ArchiveReading,
): AsyncGenerator<ListedImage> {
  let handle: FileHandle | undefined;
  try {
    const opened = await open_regular(path, "a zip archive");
    handle = opened.handle;
    const file = zip_file(handle, opened.size, signal);
    for (const entry of await read_directory(file, MAX_DIRECTORY_BYTES)) {
      const name = decode_name(entry.name);
      if (name.endsWith("/") || is_hidden_member(name)) continue;
      if (!is_image_name(name)) skipped.add(name);
      else if (entry.unix_kind !== 0 && entry.unix_kind !== REGULAR)
        skipped.count("members of archives that aren't files");
      else {
        const shown = `${path}/${short_member(name)}`;
        yield await image_of(shown, member_of(file, entry, name, shown), is_wanted);
      }
    }
  } catch (error) {
    if (signal.aborted) throw aborted(signal);
    if (error instanceof VitMsnError) throw error;
    throw error instanceof DamagedArchive ? damaged_zip(path, error) : file_error(error, path);
  } finally {
    await handle?.close();
  }
}

function zip_file(handle: FileHandle, size: number, signal: AbortSignal): ZipFile {
  return {
    size,
    read: (offset, length) => {
      signal.throwIfAborted();
      return read_exactly(handle, offset, length);
    },
    damaged: (what) => new DamagedArchive(what),
  };
}

function member_of(file: ZipFile, entry: ZipEntry, name: string, shown: string): Member {
  return { name, size: entry.size, read: () => read_entry(file, entry, shown) };
}

/** A member's content. @throws VitMsnError INVALID_IMAGE or UNSUPPORTED, which concern this member only. */
async function read_entry(file: ZipFile, entry: ZipEntry, shown: string): Promise<Uint8Array> {
  const obstacle = obstacle_to(entry);
  if (obstacle !== undefined) {
    const message = `${shown} ${obstacle}; unpack the archive and pass the folder of its images.`;
    throw new VitMsnError("UNSUPPORTED", message, { details: { file: shown } });
  }
  try {
    if (entry.packed_size > MAX_BYTES) throw new DamagedArchive(`takes ${entry.packed_size} bytes`);
    const packed = await file.read(await locate_data(file, entry), entry.packed_size);
    const bytes = entry.method === STORED ? packed : await decompressed(packed, entry.size);
    if (bytes.length !== entry.size)
      throw new DamagedArchive(`has ${bytes.length} bytes instead of ${entry.size}`);
    if (crc32(bytes) !== entry.crc32) throw new DamagedArchive("doesn't match its CRC-32");
    return bytes;
  } catch (cause) {
    if (!(cause instanceof DamagedArchive)) throw cause;
    const message = `${shown} can't be read from the zip archive: it ${cause.message}. Download or copy it again.`;
    throw new VitMsnError("INVALID_IMAGE", message, { cause, details: { file: shown } });
  }
}

function obstacle_to({ is_encrypted, method }: ZipEntry): string | undefined {
  if (is_encrypted) return "is encrypted";
  if (method === STORED || method === DEFLATED) return undefined;
  return `is compressed by ${METHODS[method] ?? `method ${method}`}, which isn't supported`;
}

/** @param size the size that the directory gives: decompression stops beyond it. */
async function decompressed(packed: Uint8Array, size: number): Promise<Uint8Array> {
  try {
    return await inflate(packed, { maxOutputLength: Math.max(1, size) });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ERR_BUFFER_TOO_LARGE") throw new DamagedArchive(`has more than its ${size} bytes`);
    throw new DamagedArchive(`can't be decompressed (${message})`);
  }
}

function damaged_zip(name: string, cause: Error): VitMsnError {
  const message = `${name} can't be read as a zip archive: it ${cause.message}. Download or copy it again.`;
  return new VitMsnError("INVALID_IMAGE", message, { cause, details: { file: name } });
}
