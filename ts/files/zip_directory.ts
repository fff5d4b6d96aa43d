/** What the directory of a zip file says of a member. */
export interface ZipEntry {
  /** Its name as stored: UTF-8, or an older encoding that the file doesn't name. */
  name: Uint8Array;
  is_encrypted: boolean;
  /** How it is compressed: 0 not at all, 8 by Deflate. */
  method: number;
  /** Bytes in the archive. */
  packed_size: number;
  /** Bytes once decompressed, by its own account. */
  size: number;
  /** Of the decompressed bytes; 0 if the archive has none. */
  crc32: number;
  /** The kind of file on Unix, such as 0o120000 for a symbolic link; 0 if it was written elsewhere. */
  unix_kind: number;
  /** Where its local header starts. */
  header_offset: number;
  /** Where the next record of the archive starts: the data must end before it. */
  limit: number;
}

/** A zip file whose parts are read when they are needed. */
export interface ZipFile {
  readonly size: number;
  /** Exactly `length` bytes from `offset`, which is within the file. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** The error for a damaged file. @param what as in "has a broken zip directory". */
  damaged(what: string): Error;
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
/** Bytes of a name in messages. */
const MAX_SHOWN = 100;
const UNIX = 3;
const KIND_BITS = 0o170000;
const ZIP64_EXTRA = 1;
const MASK32 = 0xffffffff;
const MASK16 = 0xffff;

/**
 * Lists the members of a zip file, whose entries may not overlap. Sizes and checksums come from the directory, so members
 * that are followed by a data descriptor need no special care. Archives in several parts are refused.
 * Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
 * @param max_bytes the largest directory to read: it is in memory as a whole.
 */
export async function read_directory(file: ZipFile, max_bytes: number): Promise<ZipEntry[]> {
  const directory = await find_directory(file, max_bytes);
  const bytes = await file.read(directory.offset, directory.size);
  const entries: ZipEntry[] = [];
  let at = 0;
  for (let index = 0; index < directory.count; index++) {
    const { entry, next } = parse_entry(bytes, at, file);
    entries.push(entry);
    at = next;
  }
  if (at !== bytes.byteLength) throw file.damaged("has a directory that is longer than its entries");
  check_layout(entries, directory.offset, file);
  return entries;
}

/** Where a member's data starts, after checking the local header against the directory. */
export async function locate_data(file: ZipFile, entry: ZipEntry): Promise<number> {
  const { name, header_offset } = entry;
  const view = view_of(await file.read(header_offset, LOCAL_SIZE));
  const is_sound =
    view.getUint32(0, true) === LOCAL_SIGNATURE &&
    view.getUint16(8, true) === entry.method &&
    is_encrypted(view.getUint16(6, true)) === entry.is_encrypted;
  if (!is_sound) throw file.damaged(`has a broken header for ${shown(name)}`);
  const name_length = view.getUint16(26, true);
  const start = header_offset + LOCAL_SIZE + name_length + view.getUint16(28, true);
  if (start + entry.packed_size > entry.limit)
    throw file.damaged(`has an entry ${shown(name)} that overlaps the next`);
  const local_name = await file.read(header_offset + LOCAL_SIZE, name_length);
  if (String(local_name) !== String(name))
    throw file.damaged(`calls one entry both ${shown(name)} and ${shown(local_name)}`);
  return start;
}

async function find_directory(file: ZipFile, max_bytes: number): Promise<Directory> {
  const tail_length = Math.min(file.size, END_SIZE + MAX_COMMENT);
  const tail_start = file.size - tail_length;
  const tail = view_of(await file.read(tail_start, tail_length));
  for (let at = tail_length - END_SIZE; at >= 0; at--) {
    if (tail.getUint32(at, true) !== END_SIGNATURE) continue;
    if (at + END_SIZE + tail.getUint16(at + 20, true) !== tail_length) continue;
    const directory = await read_end(
      file,
      tail_start + at,
      new DataView(tail.buffer, tail.byteOffset + at, END_SIZE),
    );
    if (directory.size <= max_bytes) return directory;
    throw file.damaged(`has a zip directory of ${directory.size} bytes, more than ${max_bytes}`);
  }
  throw file.damaged(
    "has no zip directory at its end: it was cut off while it was copied or downloaded, or it isn't a zip file",
  );
}

async function read_end(file: ZipFile, end_offset: number, end: DataView): Promise<Directory> {
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
    throw file.damaged("has a zip directory that contradicts itself or spans several disks");
  check_directory(directory, end_offset, file);
  return directory;
}

async function read_end64(file: ZipFile, end_offset: number): Promise<Directory | undefined> {
  const locator_offset = end_offset - END64_LOCATOR_SIZE;
  if (locator_offset < 0) return undefined;
  const locator = view_of(await file.read(locator_offset, END64_LOCATOR_SIZE));
  if (locator.getUint32(0, true) !== END64_LOCATOR_SIGNATURE) return undefined;
  const offset = uint64(locator, 8, file);
  if (offset + END64_SIZE > locator_offset) throw file.damaged("has a zip64 directory out of its range");
  const end = view_of(await file.read(offset, END64_SIZE));
  const one_disk =
    locator.getUint32(4, true) === 0 && locator.getUint32(16, true) <= 1 && end.getUint32(16, true) === 0;
  const count = uint64(end, 32, file);
  if (end.getUint32(0, true) !== END64_SIGNATURE || !one_disk || uint64(end, 24, file) !== count) {
    throw file.damaged("has a broken zip64 directory");
  }
  return { count, size: uint64(end, 40, file), offset: uint64(end, 48, file) };
}

function check_directory({ offset, size, count }: Directory, end_offset: number, file: ZipFile): void {
  if (offset + size > end_offset) throw file.damaged("has a zip directory that extends past its end");
  if (count * ENTRY_SIZE > size)
    throw file.damaged(`claims ${count} zip entries in a directory of ${size} bytes`);
}

function parse_entry(bytes: Uint8Array, at: number, file: ZipFile): { entry: ZipEntry; next: number } {
  if (at + ENTRY_SIZE > bytes.byteLength) throw file.damaged("has a zip directory that is cut off");
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, bytes.byteLength - at);
  const name_length = view.getUint16(28, true);
  const extra_start = ENTRY_SIZE + name_length;
  const extra_end = extra_start + view.getUint16(30, true);
  const length = extra_end + view.getUint16(32, true);
  if (view.getUint32(0, true) !== ENTRY_SIGNATURE || length > view.byteLength)
    throw file.damaged("has a broken zip directory");
  const entry = {
    name: bytes.subarray(at + ENTRY_SIZE, at + extra_start),
    is_encrypted: is_encrypted(view.getUint16(8, true)),
    method: view.getUint16(10, true),
    crc32: view.getUint32(16, true),
    unix_kind: view.getUint8(5) === UNIX ? view.getUint16(40, true) & KIND_BITS : 0,
    ...read_sizes(view, extra_start, extra_end, file),
    limit: 0,
  };
  return { entry, next: at + length };
}

/** By a password, or with a directory that is encrypted as well. */
function is_encrypted(flags: number): boolean {
  return (flags & 0x2041) !== 0;
}

/** The sizes and offset of an entry; those with all bits set are in its zip64 field, in this order. */
function read_sizes(view: DataView, extra_start: number, extra_end: number, file: ZipFile) {
  const wide = zip64_field(view, extra_start, extra_end);
  const take = (at: number): number => {
    const short = view.getUint32(at, true);
    if (short !== MASK32) return short;
    if (!wide || wide.at + 8 > wide.end) throw file.damaged("has an entry without its 64-bit size");
    wide.at += 8;
    return uint64(view, wide.at - 8, file);
  };
  const size = take(24);
  const packed_size = take(20);
  const header_offset = take(42);
  return { size, packed_size, header_offset };
}

function zip64_field(view: DataView, start: number, end: number): { at: number; end: number } | undefined {
  for (let at = start; at + 4 <= end; at += 4 + view.getUint16(at + 2, true)) {
    const field_end = at + 4 + view.getUint16(at + 2, true);
    if (view.getUint16(at, true) === ZIP64_EXTRA && field_end <= end) return { at: at + 4, end: field_end };
  }
  return undefined;
}

/** Sets each entry's limit and refuses entries that overlap or reach into the directory. */
function check_layout(entries: readonly ZipEntry[], directory_offset: number, file: ZipFile): void {
  let limit = directory_offset;
  for (const entry of [...entries].sort((a, b) => b.header_offset - a.header_offset)) {
    const { name, header_offset, packed_size } = entry;
    if (header_offset + LOCAL_SIZE + name.length + packed_size > limit)
      throw file.damaged(`has an entry ${shown(name)} that overlaps another or reaches past the file`);
    entry.limit = limit;
    limit = header_offset;
  }
}

function uint64(view: DataView, at: number, file: ZipFile): number {
  const value = Number(view.getBigUint64(at, true));
  if (!Number.isSafeInteger(value)) throw file.damaged(`claims a size of ${value} bytes`);
  return value;
}

function view_of(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function shown(name: Uint8Array): string {
  return JSON.stringify(new TextDecoder().decode(name.subarray(0, MAX_SHOWN)));
}
