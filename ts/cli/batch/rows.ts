import type { FileHandle } from "node:fs/promises";
import type { Digest } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";

const CHUNK_BYTES = 1 << 20;
const LINE_FEED = 10;

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

/** A row as it was appended. */
export interface KeptRow {
  image: string;
  bytes: Uint8Array;
}

/** How rows become a file. While a run goes on they are appended to a file of their own, one after the other. */
export interface Format {
  /** What is appended for a row. */
  encode(row: Row): Uint8Array;
  /** The rows of what was appended. */
  split(file: FileHandle, name: string): AsyncGenerator<KeptRow>;
  /** Writes the finished file; undefined where what was appended already is that file. */
  write?(path: string, rows: RowFile): Promise<Digest>;
  /** The names of the rows' pictures go to a file of their own, for a format that has no place for them. */
  has_no_names?: boolean;
  /** The most characters of a picture's name or a label, for a format that keeps all as long as the longest. */
  max_text?: number;
}

/** {"image", "embedding"} or {"image", "results": [{"label", "score"}]}, and a line feed. */
export function json_line({ image, values, labels }: Row): string {
  const numbers = Array.from(values);
  const row =
    labels === undefined
      ? { image, embedding: numbers }
      : { image, results: labels.map((label, i) => ({ label, score: numbers[i] })) };
  return `${JSON.stringify(row)}\n`;
}

/** The rows of a file of such lines, from its beginning. */
export async function* split_lines(file: FileHandle, name: string): AsyncGenerator<KeptRow> {
  const reader = new Reader(file, name);
  for (let bytes = await reader.line(); bytes !== undefined; bytes = await reader.line()) {
    const [, image] = /^\{"image":("(?:[^"\\]|\\.)*"),/.exec(bytes.toString()) ?? [];
    if (image === undefined) throw damaged(name);
    yield { image: JSON.parse(image) as string, bytes };
  }
}

const HEAD_BYTES = 8;

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
export async function* split_rows(file: FileHandle, name: string): AsyncGenerator<KeptRow> {
  const reader = new Reader(file, name);
  for (let head = await reader.take(HEAD_BYTES); head !== undefined; head = await reader.take(HEAD_BYTES)) {
    const body = await reader.take(head.readUInt32LE(0) + 4 * head.readUInt32LE(4));
    if (body === undefined) throw damaged(name);
    const bytes = Buffer.concat([head, body]);
    yield { image: row_texts(bytes).image, bytes };
  }
}

function row_texts(bytes: Buffer): Pick<Row, "image" | "labels"> {
  return JSON.parse(bytes.toString("utf8", HEAD_BYTES, HEAD_BYTES + bytes.readUInt32LE(0)));
}

/** The row of what encode_row made. */
export function decode_row(row: Uint8Array): Row {
  const bytes = Buffer.from(row.buffer, row.byteOffset, row.byteLength);
  const first = HEAD_BYTES + bytes.readUInt32LE(0);
  const values = Float32Array.from({ length: bytes.readUInt32LE(4) }, (_, i) =>
    bytes.readFloatLE(first + 4 * i),
  );
  return { ...row_texts(bytes), values };
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
    while (this.#buffer.length < count) if (!(await this.#read())) return this.#end();
    return this.#cut(count);
  }

  /** The next bytes up to a line feed and with it; undefined at the end of the file. */
  async line(): Promise<Buffer | undefined> {
    for (let searched = 0; ; ) {
      const end = this.#buffer.indexOf(LINE_FEED, searched);
      if (end >= 0) return this.#cut(end + 1);
      searched = this.#buffer.length;
      if (!(await this.#read())) return this.#end();
    }
  }

  async #read(): Promise<boolean> {
    const piece = Buffer.allocUnsafe(CHUNK_BYTES);
    const { bytesRead } = await this.#file.read(piece, 0, CHUNK_BYTES, this.#position);
    this.#position += bytesRead;
    this.#buffer = Buffer.concat([this.#buffer, piece.subarray(0, bytesRead)]);
    return bytesRead > 0;
  }

  #cut(count: number): Buffer {
    const bytes = this.#buffer.subarray(0, count);
    this.#buffer = this.#buffer.subarray(count);
    return bytes;
  }

  #end(): undefined {
    if (this.#buffer.length > 0) throw damaged(this.#name);
  }
}

export function damaged(name: string): VitMsnError {
  return new VitMsnError(
    "IO",
    `${name} isn't what its journal says: it was changed or lost. Start again with --restart.`,
  );
}
