import { concat_bytes } from "../../files/concat_bytes.ts";
import { as_utf8 } from "../../files/text_encoding.ts";
import { decode_utf8 } from "../../loading/bytes.ts";
import { is_record } from "../../options.ts";
import { bad_row, MAX_CELL } from "./table_errors.ts";

const LINE_FEED = 10;

export interface JsonLine {
  value: Readonly<Record<string, unknown>>;
  /** Counted from 1. */
  line: number;
}

/**
 * The objects of a JSON lines file, in UTF-8 or UTF-16, with or without a byte order mark. Blank lines are skipped.
 * @throws VitMsnError INVALID_ARGUMENT that names the line.
 */
export async function* read_jsonl(chunks: AsyncIterable<Uint8Array>, file: string): AsyncGenerator<JsonLine> {
  for await (const { bytes, line } of read_lines(chunks, file)) {
    const text = decode(bytes, file, line).trim();
    if (text !== "") yield { value: parse(text, file, line), line };
  }
}

async function* read_lines(chunks: AsyncIterable<Uint8Array>, file: string) {
  let [line, length] = [1, 0];
  let parts: Uint8Array[] = [];
  const take = () => {
    const bytes = concat_bytes(parts);
    [parts, length] = [[], 0];
    return { bytes, line: line++ };
  };
  for await (const chunk of as_utf8(chunks)) {
    for (let at = 0; at < chunk.length; ) {
      const found = chunk.indexOf(LINE_FEED, at);
      const end = found < 0 ? chunk.length : found;
      length += end - at;
      if (length > MAX_CELL) throw bad_row(file, `line ${line}`, `has more than ${MAX_CELL} bytes`);
      parts.push(chunk.subarray(at, end));
      if (found >= 0) yield take();
      at = end + 1;
    }
  }
  yield take();
}

function decode(bytes: Uint8Array, file: string, line: number): string {
  const text = decode_utf8(bytes);
  if (text === undefined) throw bad_row(file, `line ${line}`, "isn't UTF-8; save the file as UTF-8");
  return text;
}

function parse(text: string, file: string, line: number): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw bad_row(
      file,
      `line ${line}`,
      `isn't valid JSON (${(cause as Error).message}); each line must be a separate object`,
    );
  }
  if (is_record(value)) return value;
  throw bad_row(file, `line ${line}`, 'must be a JSON object, such as {"image": "a.png", "label": "cat"}');
}
