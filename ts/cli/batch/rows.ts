import type { FileHandle } from "node:fs/promises";
import { VitMsnError } from "../../index.ts";

/** What is written of one picture: its embedding, or the scores of its likeliest classes with their labels. */
export interface Row {
  image: string;
  values: ArrayLike<number>;
  labels?: readonly string[];
}

/** What all rows of an output have in common. */
export interface RowShape {
  /** Values of each row. */
  width: number;
  has_labels: boolean;
}

/** The rows that are to be written, to be gone through as often as needed. */
export interface RowFile extends RowShape {
  rows(): AsyncIterable<Row>;
  count: number;
}

/** How rows become a file. While a run goes on they are appended to a file of their own, one after the other. */
export interface Format {
  /** What is appended for a row. */
  encode(row: Row): Uint8Array | string;
  /** Writes the finished file; undefined where what was appended already is that file. */
  write?(path: string, rows: RowFile): Promise<void>;
  /** The names of the rows' pictures go to a file of their own, for a format that has no place for them. */
  has_no_names?: boolean;
}

/** {"image", "embedding"} or {"image", "results": [{"label", "score"}]}. */
export function json_line({ image, values, labels }: Row): string {
  const numbers = Array.from(values);
  const row =
    labels === undefined
      ? { image, embedding: numbers }
      : { image, results: labels.map((label, i) => ({ label, score: numbers[i] })) };
  return `${JSON.stringify(row)}\n`;
}

const HEAD_BYTES = 8;
const CHUNK_BYTES = 1 << 20;

/**
 * A row as it waits to be written in a format that can't be appended to: the lengths of both parts as uint32, the image
 * and its labels as JSON, the values as float32. All little-endian.
 */
export function encode_row({ image, values, labels }: Row): Uint8Array {
  const text = Buffer.from(JSON.stringify({ image, labels }));
  const bytes = Buffer.alloc(HEAD_BYTES + text.length + 4 * values.length);
  bytes.writeUInt32LE(text.length, 0);
  bytes.writeUInt32LE(values.length, 4);
  text.copy(bytes, HEAD_BYTES);
  for (let i = 0, at = HEAD_BYTES + text.length; i < values.length; i++, at += 4)
    bytes.writeFloatLE(values[i] as number, at);
  return bytes;
}

/** The rows of a file that encode_row wrote, from its beginning. */
export async function* decode_rows(file: FileHandle, name: string): AsyncGenerator<Row> {
  const reader = new Reader(file, name);
  for (let head = await reader.take(HEAD_BYTES); head !== undefined; head = await reader.take(HEAD_BYTES)) {
    const [text_bytes, count] = [head.readUInt32LE(0), head.readUInt32LE(4)];
    const body = await reader.take(text_bytes + 4 * count);
    if (body === undefined) throw damaged(name);
    const { image, labels } = JSON.parse(body.toString("utf8", 0, text_bytes));
    const values = Float32Array.from({ length: count }, (_, i) => body.readFloatLE(text_bytes + 4 * i));
    yield { image, labels, values };
  }
}

/** Reads a file in large pieces and gives it in small ones. */
class Reader {
  readonly #file: FileHandle;
  readonly #name: string;
  #buffer = Buffer.alloc(0);
  #position = 0;

  constructor(file: FileHandle, name: string) {
    this.#file = file;
    this.#name = name;
  }

  /** The next `count` bytes; undefined at the end of the file. */
  async take(count: number): Promise<Buffer | undefined> {
    while (this.#buffer.length < count) {
      const piece = Buffer.allocUnsafe(Math.max(CHUNK_BYTES, count));
      const { bytesRead } = await this.#file.read(piece, 0, CHUNK_BYTES, this.#position);
      if (bytesRead === 0 && this.#buffer.length === 0) return undefined;
      if (bytesRead === 0) throw damaged(this.#name);
      this.#position += bytesRead;
      this.#buffer = Buffer.concat([this.#buffer, piece.subarray(0, bytesRead)]);
    }
    const bytes = this.#buffer.subarray(0, count);
    this.#buffer = this.#buffer.subarray(count);
    return bytes;
  }
}

function damaged(name: string): VitMsnError {
  return new VitMsnError("IO", `${name} was changed by someone else; begin anew with --restart.`);
}
