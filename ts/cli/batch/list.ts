import { as_utf8, decode_name } from "../../files/index.ts";
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
