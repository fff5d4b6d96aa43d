import { concat_bytes } from "./concat_bytes.ts";
import { decode_name } from "./file_names.ts";

/**
 * Reads tar archives as streams: v7, ustar, pax and GNU, with sparse members in all of GNU's formats. As in Python's tarfile,
 * a member of unknown type is a file.
 */

const BLOCK = 512;
const SLASH = 47;
/** The largest pax header or GNU long name. */
const MAX_HEADER_BYTES = 16 * 1024 * 1024;
/** The most pieces of a sparse member. */
const MAX_PIECES = 1_000_000;

/** The bytes aren't a tar archive, or the archive is truncated. */
export class DamagedArchive extends Error {
  readonly is_cut: boolean;

  constructor(message: string, is_cut = false) {
    super(message);
    this.is_cut = is_cut;
  }
}

export interface TarMember {
  name: string;
  kind: "file" | "folder" | "hard link" | "symbolic link" | "other";
  /** The path that a link leads to. */
  target: string;
  /** Bytes of its content, holes included. */
  size: number;
  /** Where its content begins in the archive; undefined for a sparse member, whose content isn't in one piece. */
  offset: number | undefined;
  /** Reads its content, which must happen before the next member is requested. */
  read(): Promise<Uint8Array>;
}

const KINDS: Readonly<Record<string, TarMember["kind"]>> = {
  "1": "hard link",
  "2": "symbolic link",
  "3": "other",
  "4": "other",
  "5": "folder",
  "6": "other",
  D: "folder",
};
/** Types whose headers may state a size although no content follows. */
const WITHOUT_CONTENT = "123456V";

/** Attributes of a member, or of all following members, from pax headers and GNU's long names. */
type Attributes = Partial<Record<(typeof KEYS)[number], Uint8Array>> & { pieces?: number[] };

const KEYS = [
  "path",
  "linkpath",
  "size",
  "GNU.sparse.major",
  "GNU.sparse.minor",
  "GNU.sparse.name",
  "GNU.sparse.size",
  "GNU.sparse.realsize",
  "GNU.sparse.map",
] as const;

/** An archive's bytes in order. */
export interface ByteSource {
  next(): Promise<IteratorResult<Uint8Array, unknown>>;
  /**
   * Moves on by up to `count` bytes without reading them, and returns their number, which is smaller only at the end.
   * Absent if the source can only be read.
   */
  skip?(count: number): Promise<number>;
}

/** The members of an archive in order. What isn't read of a member is skipped. */
export async function* tar_members(source: ByteSource): AsyncGenerator<TarMember> {
  const bytes = new ByteReader(source);
  let global: Attributes = {};
  let own: Attributes = {};
  for (let header = await next_header(bytes); header !== undefined; header = await next_header(bytes)) {
    const type = String.fromCharCode(header[156] as number);
    if ("gxXLK".includes(type)) {
      const body = await read_header_body(bytes, header);
      if (type === "g") global = { ...global, ...parse_pax(body) };
      else if (type === "L") own = { ...own, path: until_nul(body) };
      else if (type === "K") own = { ...own, linkpath: until_nul(body) };
      else own = { ...own, ...parse_pax(body) };
      continue;
    }
    const content = await open_content(bytes, header, type, { ...global, ...own });
    own = {};
    // A volume label is only a header.
    if (type !== "V") yield content.member;
    await content.finish();
  }
}

/**
 * The next header; undefined at the end. Two blocks of zeros mark the end: behind them another archive may follow, and
 * anything else is ignored, as by GNU tar.
 */
async function next_header(bytes: ByteReader): Promise<Uint8Array | undefined> {
  for (let zeros = 0; ; zeros++) {
    const at = bytes.position;
    const block = await bytes.take_some(BLOCK);
    if (block.length === 0) return undefined;
    if (block.length === BLOCK && block.every((byte) => byte === 0)) continue;
    const is_header = block.length === BLOCK && has_its_sum(block);
    if (is_header) return block;
    if (zeros >= 2) return undefined;
    throw at === 0 || block.length === BLOCK
      ? no_header(at)
      : new DamagedArchive("it ends within a member's header", true);
  }
}

/** Whether a header holds the sum of its other bytes; old archives treat the bytes as signed. */
function has_its_sum(block: Uint8Array): boolean {
  let [unsigned, signed] = [8 * 32, 8 * 32];
  for (let i = 0; i < BLOCK; i++) {
    if (i >= 148 && i < 156) continue;
    unsigned += block[i] as number;
    signed += ((block[i] as number) << 24) >> 24;
  }
  const claimed = Number.parseInt(latin1(until_nul(block.subarray(148, 156))).trim(), 8);
  return claimed === unsigned || claimed === signed;
}

function no_header(at: number): DamagedArchive {
  return new DamagedArchive(at === 0 ? "it isn't a tar archive" : `there is no valid header at byte ${at}`);
}

async function read_header_body(bytes: ByteReader, header: Uint8Array): Promise<Uint8Array> {
  const size = size_of(header, {});
  if (size > MAX_HEADER_BYTES)
    throw new DamagedArchive(`a header of ${size} bytes is more than the limit of ${MAX_HEADER_BYTES}`);
  const body = await bytes.take(size);
  await bytes.skip(padding(size));
  return body;
}

/** Records of the form "length key=value\n"; only the keys in KEYS are returned. */
function parse_pax(body: Uint8Array): Attributes {
  const found: Attributes = {};
  for (let at = 0; at < body.length && body[at] !== 0; ) {
    const space = body.indexOf(32, at);
    const length = Number(latin1(body.subarray(at, Math.min(space, at + 12))));
    const end = at + length;
    const equals = body.indexOf(61, space);
    if (
      space < 0 ||
      !(length > 0) ||
      end > body.length ||
      equals < 0 ||
      equals >= end ||
      body[end - 1] !== 10
    )
      throw new DamagedArchive("a pax header is damaged");
    add_attribute(found, latin1(body.subarray(space + 1, equals)), body.subarray(equals + 1, end - 1));
    at = end;
  }
  return found;
}

function add_attribute(found: Attributes, key: string, value: Uint8Array): void {
  // Sparse format 0.0 has one record for each number.
  if (key === "GNU.sparse.offset" || key === "GNU.sparse.numbytes") {
    found.pieces ??= [];
    found.pieces.push(whole_number(latin1(value)));
  } else if ((KEYS as readonly string[]).includes(key)) found[key as (typeof KEYS)[number]] = value;
}

function size_of(header: Uint8Array, { size }: Attributes): number {
  return size === undefined ? number_at(header, 124, 12) : whole_number(latin1(size));
}

async function open_content(bytes: ByteReader, header: Uint8Array, type: string, attributes: Attributes) {
  const name = decode_name(attributes["GNU.sparse.name"] ?? attributes.path ?? name_in(header));
  const target = decode_name(attributes.linkpath ?? text_at(header, 157, 100));
  // In old archives a folder is a file whose name ends with a slash.
  const is_folder = name.endsWith("/") && ["\0", "0", "7"].includes(type);
  const kind = is_folder ? "folder" : (KINDS[type] ?? "file");
  const stored = WITHOUT_CONTENT.includes(type) ? 0 : size_of(header, attributes);
  const sparse = type === "S" ? await old_sparse(bytes, header) : pax_sparse(attributes);
  const end = bytes.position + stored;
  const read = async () => {
    if (sparse === undefined) return bytes.take(stored);
    const pieces = sparse.pieces ?? (await read_map(bytes));
    return expand(await bytes.take(end - bytes.position), pieces, sparse.size);
  };
  const offset = sparse === undefined ? bytes.position : undefined;
  const member: TarMember = { name, kind, target, size: Math.max(stored, sparse?.size ?? 0), offset, read };
  return { member, finish: () => bytes.skip(end - bytes.position + padding(stored)) };
}

function padding(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

function name_in(header: Uint8Array): Uint8Array {
  const name = text_at(header, 0, 100);
  const has_prefix = latin1(header.subarray(257, 263)) === "ustar\0";
  const prefix = has_prefix ? text_at(header, 345, 155) : new Uint8Array();
  return prefix.length === 0 ? name : concat_bytes([prefix, Uint8Array.of(SLASH), name]);
}

function text_at(header: Uint8Array, at: number, length: number): Uint8Array {
  return until_nul(header.subarray(at, at + length));
}

function until_nul(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

/** Octal digits, or GNU's binary form for larger numbers. */
function number_at(header: Uint8Array, at: number, length: number): number {
  const first = header[at] as number;
  if (first === 0x80) {
    let value = 0;
    for (let i = 1; i < length; i++) value = value * 256 + (header[at + i] as number);
    return safe(value);
  }
  const digits = latin1(until_nul(header.subarray(at, at + length))).trim();
  return /^[0-7]*$/.test(digits) ? safe(Number.parseInt(digits || "0", 8)) : fail_number(digits);
}

function fail_number(digits: string): never {
  throw new DamagedArchive(`a header has ${JSON.stringify(digits)} where a number is expected`);
}

function whole_number(digits: string): number {
  return /^\d{1,16}$/.test(digits) ? safe(Number(digits)) : fail_number(digits.slice(0, 20));
}

function safe(value: number): number {
  return Number.isSafeInteger(value) ? value : fail_number(String(value));
}

interface Sparse {
  /** Including its holes. */
  size: number;
  /** Offset and length of each piece; undefined if the content begins with them. */
  pieces: number[] | undefined;
}

/** Old GNU format: a map in the header and in the blocks after it. */
async function old_sparse(bytes: ByteReader, header: Uint8Array): Promise<Sparse> {
  const pieces: number[] = [];
  const add = (block: Uint8Array, at: number, count: number) => {
    for (let i = 0; i < count; i++, at += 24) {
      if (block[at] === 0 || block[at + 12] === 0) break;
      pieces.push(number_at(block, at, 12), number_at(block, at + 12, 12));
    }
  };
  add(header, 386, 4);
  for (let has_more = header[482] !== 0; has_more; ) {
    const block = await bytes.take(BLOCK);
    add(block, 0, 21);
    check_pieces(pieces.length);
    has_more = block[504] !== 0;
  }
  return { size: number_at(header, 483, 12), pieces };
}

/** Formats 0.0, 0.1 and 1.0; undefined for a member without holes. */
function pax_sparse(attributes: Attributes): Sparse | undefined {
  const size = attributes["GNU.sparse.realsize"] ?? attributes["GNU.sparse.size"];
  if (size === undefined) return undefined;
  const map = attributes["GNU.sparse.map"];
  const text = map && latin1(map);
  const pieces = text === undefined ? attributes.pieces : text.split(",").filter(Boolean).map(whole_number);
  const is_inside = latin1(attributes["GNU.sparse.major"] ?? new Uint8Array()) === "1";
  return { size: whole_number(latin1(size)), pieces: is_inside ? undefined : (pieces ?? []) };
}

/** Format 1.0: one number a line, the count of pieces first, padded to whole blocks. */
async function read_map(bytes: ByteReader): Promise<number[]> {
  const numbers: number[] = [];
  const is_whole = () => numbers.length > 0 && numbers.length > 2 * (numbers[0] as number);
  for (let digits = ""; !is_whole(); ) {
    for (const byte of await bytes.take(BLOCK)) {
      if (is_whole()) break;
      if (byte !== 10) digits = (digits + String.fromCharCode(byte)).slice(0, 20);
      else {
        numbers.push(whole_number(digits));
        check_pieces(2 * (numbers[0] as number));
        digits = "";
      }
    }
  }
  return numbers.slice(1);
}

function check_pieces(count: number): void {
  if (count > 2 * MAX_PIECES) throw new DamagedArchive(`a sparse member has more than ${MAX_PIECES} pieces`);
}

function expand(content: Uint8Array, pieces: readonly number[], size: number): Uint8Array {
  const whole = new Uint8Array(size);
  let from = 0;
  for (let i = 0; i + 1 < pieces.length; i += 2) {
    const [offset, length] = [pieces[i] as number, pieces[i + 1] as number];
    if (offset + length > size || from + length > content.length)
      throw new DamagedArchive("the map of a sparse member is damaged");
    whole.set(content.subarray(from, from + length), offset);
    from += length;
  }
  return whole;
}

/** Reads a given number of bytes at a time from a source. */
class ByteReader {
  readonly #source: ByteSource;
  #left: Uint8Array = new Uint8Array();
  /** Bytes taken so far. */
  position = 0;

  constructor(source: ByteSource) {
    this.#source = source;
  }

  /** @throws DamagedArchive if fewer than `count` are left. */
  async take(count: number): Promise<Uint8Array> {
    const bytes = await this.take_some(count);
    if (bytes.length < count) throw new DamagedArchive("it ends within a member", true);
    return bytes;
  }

  /** Up to `count` bytes, fewer only at the end. */
  async take_some(count: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    await this.#each(count, (part) => parts.push(part));
    return concat_bytes(parts);
  }

  async skip(count: number): Promise<void> {
    let skipped = await this.#each(this.#source.skip ? Math.min(count, this.#left.length) : count, () => {});
    if (skipped < count && this.#source.skip) {
      const moved = await this.#source.skip(count - skipped);
      this.position += moved;
      skipped += moved;
    }
    if (skipped < count) throw new DamagedArchive("it ends within a member", true);
  }

  async #each(count: number, use: (part: Uint8Array) => void): Promise<number> {
    let done = 0;
    while (done < count) {
      if (this.#left.length === 0) {
        const { done: has_ended, value } = await this.#source.next();
        if (has_ended) break;
        this.#left = value;
        continue;
      }
      const part = this.#left.subarray(0, count - done);
      this.#left = this.#left.subarray(part.length);
      done += part.length;
      use(part);
    }
    this.position += done;
    return done;
  }
}

/** For digits and keys, which are ASCII. */
function latin1(bytes: Uint8Array): string {
  return new TextDecoder("latin1").decode(bytes);
}
