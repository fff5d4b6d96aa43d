import { VitMsnError } from "../../errors.ts";
import { decode_utf8, view_of } from "../bytes.ts";
import type { RandomAccessFile } from "../types.ts";

/** A stored (never compressed) member of a zip file. */
export interface ZipEntry {
  name: string;
  size: number;
  /** Its CRC-32; 0 if the archive has none. */
  crc32: number;
  /** Where its local header starts. */
  header_offset: number;
  /** Where the next record of the archive starts: the data must end before it. */
  limit: number;
}

interface Directory {
  offset: number;
  size: number;
  count: number;
}

const END_SIGNATURE = 0x06054b50;
const END_SIZE = 22;
const END64_LOCATOR_SIGNATURE = 0x07064b50;
const END64_LOCATOR_SIZE = 20;
const END64_SIGNATURE = 0x06064b50;
const END64_SIZE = 56;
const ENTRY_SIGNATURE = 0x02014b50;
const ENTRY_SIZE = 46;
const LOCAL_SIGNATURE = 0x04034b50;
const LOCAL_SIZE = 30;
const MAX_COMMENT = 0xffff;
const MAX_DIRECTORY_BYTES = 16 * 1024 * 1024;
const MAX_NAME_BYTES = 1024;
const ZIP64_EXTRA = 1;
const MASK32 = 0xffffffff;
const MASK16 = 0xffff;

/**
 * Lists the members of a zip file by torch.save: one disk, nothing compressed, nothing encrypted.
 * Everything else is refused, so that no member can be larger than its file.
 * Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
 */
export async function read_zip(file: RandomAccessFile): Promise<Map<string, ZipEntry>> {
  const directory = await find_directory(file);
  const bytes = await file.read(directory.offset, directory.size);
  const entries = new Map<string, ZipEntry>();
  let at = 0;
  for (let index = 0; index < directory.count; index++) {
    const { entry, next } = parse_entry(bytes, at, file.name);
    if (entries.has(entry.name)) throw invalid(file.name, `lists ${JSON.stringify(entry.name)} twice`);
    entries.set(entry.name, entry);
    at = next;
  }
  if (at !== bytes.byteLength) throw invalid(file.name, "has a directory that is longer than its entries");
  check_layout([...entries.values()], directory.offset, file.name);
  return entries;
}

/** Where a member's data starts, after checking the local header against the directory. */
export async function locate_entry(file: RandomAccessFile, entry: ZipEntry): Promise<number> {
  const view = view_of(await file.read(entry.header_offset, LOCAL_SIZE));
  const sound = view.getUint32(0, true) === LOCAL_SIGNATURE && view.getUint16(8, true) === 0;
  if (!sound || view.getUint16(6, true) & 1)
    throw invalid(file.name, `has a broken header for ${JSON.stringify(entry.name)}`);
  const name_length = view.getUint16(26, true);
  const start = entry.header_offset + LOCAL_SIZE + name_length + view.getUint16(28, true);
  if (start + entry.size > entry.limit)
    throw invalid(file.name, `has an entry ${JSON.stringify(entry.name)} that overlaps the next`);
  const name = decode_utf8(await file.read(entry.header_offset + LOCAL_SIZE, name_length));
  if (name !== entry.name)
    throw invalid(
      file.name,
      `calls one entry both ${JSON.stringify(entry.name)} and ${JSON.stringify(name)}`,
    );
  return start;
}

async function find_directory(file: RandomAccessFile): Promise<Directory> {
  const tail_length = Math.min(file.size, END_SIZE + MAX_COMMENT);
  const tail_start = file.size - tail_length;
  const tail = view_of(await file.read(tail_start, tail_length));
  for (let at = tail_length - END_SIZE; at >= 0; at--) {
    if (tail.getUint32(at, true) !== END_SIGNATURE) continue;
    if (at + END_SIZE + tail.getUint16(at + 20, true) !== tail_length) continue;
    return read_end(file, tail_start + at, new DataView(tail.buffer, tail.byteOffset + at, END_SIZE));
  }
  throw invalid(
    file.name,
    "has no zip directory at its end: it was cut off while it was copied or downloaded, or it isn't a zip file",
  );
}

async function read_end(file: RandomAccessFile, end_offset: number, end: DataView): Promise<Directory> {
  const one_disk = end.getUint16(4, true) === 0 && end.getUint16(6, true) === 0;
  const short = {
    count: end.getUint16(10, true),
    size: end.getUint32(12, true),
    offset: end.getUint32(16, true),
  };
  const long = await read_end64(file, end_offset);
  const directory = long ?? short;
  const agrees =
    (short.count === MASK16 || short.count === directory.count) &&
    (short.size === MASK32 || short.size === directory.size) &&
    (short.offset === MASK32 || short.offset === directory.offset);
  if (!one_disk || !agrees)
    throw invalid(file.name, "has a zip directory that contradicts itself or spans several disks");
  check_directory(directory, end_offset, file.name);
  return directory;
}

async function read_end64(file: RandomAccessFile, end_offset: number): Promise<Directory | undefined> {
  const locator_offset = end_offset - END64_LOCATOR_SIZE;
  if (locator_offset < 0) return undefined;
  const locator = view_of(await file.read(locator_offset, END64_LOCATOR_SIZE));
  if (locator.getUint32(0, true) !== END64_LOCATOR_SIGNATURE) return undefined;
  const offset = uint64(locator, 8, file.name);
  if (offset + END64_SIZE > locator_offset)
    throw invalid(file.name, "has a zip64 directory out of its range");
  const end = view_of(await file.read(offset, END64_SIZE));
  const one_disk =
    locator.getUint32(4, true) === 0 && locator.getUint32(16, true) <= 1 && end.getUint32(16, true) === 0;
  const count = uint64(end, 32, file.name);
  if (end.getUint32(0, true) !== END64_SIGNATURE || !one_disk || uint64(end, 24, file.name) !== count) {
    throw invalid(file.name, "has a broken zip64 directory");
  }
  return { count, size: uint64(end, 40, file.name), offset: uint64(end, 48, file.name) };
}

function check_directory({ offset, size, count }: Directory, end_offset: number, name: string): void {
  if (offset + size > end_offset) throw invalid(name, "has a zip directory that extends past its end");
  if (size > MAX_DIRECTORY_BYTES)
    throw invalid(name, `has a zip directory of ${size} bytes, more than ${MAX_DIRECTORY_BYTES}`);
  if (count * ENTRY_SIZE > size)
    throw invalid(name, `claims ${count} zip entries in a directory of ${size} bytes`);
}

function parse_entry(bytes: Uint8Array, at: number, file_name: string): { entry: ZipEntry; next: number } {
  if (at + ENTRY_SIZE > bytes.byteLength) throw invalid(file_name, "has a zip directory that is cut off");
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, bytes.byteLength - at);
  const name_length = view.getUint16(28, true);
  const extra_start = ENTRY_SIZE + name_length;
  const extra_end = extra_start + view.getUint16(30, true);
  const length = extra_end + view.getUint16(32, true);
  if (
    view.getUint32(0, true) !== ENTRY_SIGNATURE ||
    length > view.byteLength ||
    name_length > MAX_NAME_BYTES
  ) {
    throw invalid(file_name, "has a broken zip directory");
  }
  const name = decode_utf8(bytes.subarray(at + ENTRY_SIZE, at + extra_start));
  if (name === undefined) throw invalid(file_name, "has an entry whose name isn't UTF-8");
  check_storage(view, name, file_name);
  const sizes = read_sizes(view, extra_start, extra_end, file_name);
  if (sizes.packed !== sizes.size)
    throw invalid(file_name, `has an entry ${JSON.stringify(name)} with two different sizes`);
  const crc32 = view.getUint32(16, true);
  return {
    entry: { name, size: sizes.size, crc32, header_offset: sizes.offset, limit: 0 },
    next: at + length,
  };
}

function check_storage(view: DataView, name: string, file_name: string): void {
  if (view.getUint16(8, true) & 1) throw invalid(file_name, `has an encrypted entry ${JSON.stringify(name)}`);
  if (view.getUint16(10, true) !== 0) {
    throw invalid(
      file_name,
      `has a compressed entry ${JSON.stringify(name)}; torch.save stores entries as they are`,
    );
  }
}

/** The sizes and offset of an entry; those with all bits set are in its zip64 field, in this order. */
function read_sizes(view: DataView, extra_start: number, extra_end: number, file_name: string) {
  const wide = zip64_field(view, extra_start, extra_end);
  const take = (at: number): number => {
    const short = view.getUint32(at, true);
    if (short !== MASK32) return short;
    if (!wide || wide.at + 8 > wide.end) throw invalid(file_name, "has an entry without its 64-bit size");
    wide.at += 8;
    return uint64(view, wide.at - 8, file_name);
  };
  const size = take(24);
  const packed = take(20);
  const offset = take(42);
  return { size, packed, offset };
}

function zip64_field(view: DataView, start: number, end: number): { at: number; end: number } | undefined {
  for (let at = start; at + 4 <= end; at += 4 + view.getUint16(at + 2, true)) {
    const field_end = at + 4 + view.getUint16(at + 2, true);
    if (view.getUint16(at, true) === ZIP64_EXTRA && field_end <= end) return { at: at + 4, end: field_end };
  }
  return undefined;
}

/** Sets each entry's limit and refuses entries that overlap or reach into the directory. */
function check_layout(entries: ZipEntry[], directory_offset: number, file_name: string): void {
  let limit = directory_offset;
  for (const entry of entries.sort((a, b) => b.header_offset - a.header_offset)) {
    const least_end =
      entry.header_offset + LOCAL_SIZE + new TextEncoder().encode(entry.name).byteLength + entry.size;
    if (least_end > limit) {
      throw invalid(
        file_name,
        `has an entry ${JSON.stringify(entry.name)} that overlaps another or reaches past the file`,
      );
    }
    entry.limit = limit;
    limit = entry.header_offset;
  }
}

function uint64(view: DataView, at: number, file_name: string): number {
  const value = Number(view.getBigUint64(at, true));
  if (!Number.isSafeInteger(value)) throw invalid(file_name, `claims a size of ${value} bytes`);
  return value;
}

function invalid(name: string, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${name} ${what}.`, { details: { file: name } });
}
