import { decode_name } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";

/** The longest line: longer than any path, with room for an image in a data: URL. */
const MAX_LINE_BYTES = 8192;
const MAX_DATA_URL_BYTES = 32 * 1024 * 1024;

const [NUL, LINE_FEED, CARRIAGE_RETURN] = [0, 10, 13];

export interface Line {
  text: string;
  /** Counted from 1. */
  number: number;
  /** For a line that is too long; `text` is then cut. */
  error?: VitMsnError;
}

type Encoding = "utf-8" | "utf-16le" | "utf-16be";

/**
 * The non-blank lines of a list: text in UTF-8 or UTF-16, with or without a byte order mark, with the line endings of any
 * system; or names that end in NUL, as `find -print0` writes them. Of an endless line only a part is held in memory.
 */
export async function* read_lines(input: AsyncIterable<Uint8Array>, list: string): AsyncGenerator<Line> {
  let separators: readonly number[] = [];
  let number = 0;
  let last_separator: number | undefined;
  const line = new LineBuffer();
  for await (const bytes of as_utf8(input)) {
    if (separators.length === 0) separators = find_separators(bytes);
    for (let at = 0; at < bytes.length; ) {
      const end = next_separator(bytes, at, separators);
      line.add(bytes.subarray(at, end));
      if (end === bytes.length) break;
      at = end + 1;
      const is_second_half = bytes[end] === LINE_FEED && last_separator === CARRIAGE_RETURN && line.is_empty;
      last_separator = bytes[end];
      if (is_second_half) continue;
      const found = line.take(++number, list);
      if (found !== undefined) yield found;
    }
  }
  const last = line.take(number + 1, list);
  if (last !== undefined) yield last;
}

/** Empty until a separator of either kind has been found. */
function find_separators(bytes: Uint8Array): readonly number[] {
  if (bytes.includes(NUL)) return [NUL];
  const ends = [LINE_FEED, CARRIAGE_RETURN];
  return ends.some((end) => bytes.includes(end)) ? ends : [];
}

function next_separator(bytes: Uint8Array, from: number, separators: readonly number[]): number {
  const ends = separators.map((separator) => bytes.indexOf(separator, from)).filter((end) => end >= 0);
  return Math.min(bytes.length, ...ends);
}

/** The line being read. */
class LineBuffer {
  #parts: Uint8Array[] = [];
  #length = 0;

  get is_empty(): boolean {
    return this.#length === 0;
  }

  add(part: Uint8Array): void {
    this.#length += part.length;
    if (this.#length <= MAX_DATA_URL_BYTES && part.length > 0) this.#parts.push(part.slice());
  }

  /** undefined for a blank line. */
  take(number: number, list: string): Line | undefined {
    const length = this.#length;
    const bytes = Buffer.concat(this.#parts);
    this.#parts = [];
    this.#length = 0;
    const is_data_url = /^data:/i.test(bytes.toString("latin1", 0, 5));
    const limit = is_data_url ? MAX_DATA_URL_BYTES : MAX_LINE_BYTES;
    if (length > limit) {
      const text = `${decode_name(bytes.subarray(0, 40))}…`;
      const message = `${list}, line ${number} (${text}) has ${length} bytes, more than the limit of ${limit}; write one path or URL on each line.`;
      return {
        text,
        number,
        error: new VitMsnError("INVALID_ARGUMENT", message, { details: { file: list } }),
      };
    }
    const text = decode_name(bytes);
    return text.trim() === "" ? undefined : { text, number };
  }
}

/** A list's encoding, by its first bytes. */
function detect(bytes: Uint8Array): { encoding: Encoding; mark: number } {
  const [a, b, c, d] = bytes;
  if (a === 0xff && b === 0xfe) return { encoding: "utf-16le", mark: 2 };
  if (a === 0xfe && b === 0xff) return { encoding: "utf-16be", mark: 2 };
  if (a === 0xef && b === 0xbb && c === 0xbf) return { encoding: "utf-8", mark: 3 };
  // Without a mark: in UTF-16 every Latin letter has a zero byte.
  if (bytes.length >= 4 && a !== 0 && b === 0 && c !== 0 && d === 0) return { encoding: "utf-16le", mark: 0 };
  if (bytes.length >= 4 && a === 0 && b !== 0 && c === 0 && d !== 0) return { encoding: "utf-16be", mark: 0 };
  return { encoding: "utf-8", mark: 0 };
}

/** A list's bytes as UTF-8, without the byte order mark. */
async function* as_utf8(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let decoder: TextDecoder | undefined;
  let start: Uint8Array | undefined = new Uint8Array();
  const encode = (bytes?: Uint8Array) =>
    Buffer.from(decoder?.decode(bytes, { stream: bytes !== undefined }) ?? "");
  const begin = (bytes: Uint8Array) => {
    const { encoding, mark } = detect(bytes);
    if (encoding !== "utf-8") decoder = new TextDecoder(encoding);
    return bytes.subarray(mark);
  };
  for await (const bytes of input) {
    let piece = bytes;
    if (start !== undefined) {
      start = Buffer.concat([start, bytes]);
      if (start.length < 4) continue;
      piece = begin(start);
      start = undefined;
    }
    yield decoder === undefined ? piece : encode(piece);
  }
  if (start !== undefined) {
    const piece = begin(start);
    yield decoder === undefined ? piece : encode(piece);
  }
  if (decoder !== undefined) yield encode();
}
