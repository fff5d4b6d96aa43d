import type { FileHandle } from "node:fs/promises";
import type { Digest } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";

const CHUNK_BYTES = 1 << 20;
const LINE_FEED = 10;

/** The result for one image: its embedding, or the labels and scores of its likeliest classes. */
export interface Row {
  image: string;
  values: ArrayLike<number>;
  labels?: readonly string[];
}

/** The shape that all rows of an output share. */
export interface RowShape {
  /** The number of values in each row. */
  width: number;
  has_labels: boolean;
}

/** The rows to write; they can be iterated any number of times. */
export interface RowFile extends RowShape {
  rows(): AsyncIterable<Row>;
  count: number;
  /** What determined the rows: the model, its dtype, the options. */
  about: Readonly<Record<string, unknown>>;
}

/** A row as it is stored. */
export interface StoredRow {
  image: string;
  bytes: Uint8Array;
}

/** How rows become a file. During a run they are appended to a separate file, one after the other. */
export interface Format {
  /** The bytes appended for a row. */
  encode(row: Row): Uint8Array;
  /** Splits appended bytes into rows. */
  split(file: FileHandle, name: string): AsyncGenerator<StoredRow>;
  /** Writes the output file; undefined if the appended bytes already are that file. */
  write?(path: string, rows: RowFile): Promise<Digest>;
  /** Whether image names go to a separate file, since the format has no place for them. */
  has_no_names?: boolean;
  /** The longest name or label in characters, for a format that pads all of them to the longest. */
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

/** The rows of a file of such lines. */
export async function* split_lines(file: FileHandle, name: string): AsyncGenerator<StoredRow> {
  const reader = new FileReader(file, name);
  for (let bytes = await reader.line(); bytes !== undefined; bytes = await reader.line()) {
    const [, image] = /^\{"image":("(?:[^"\\]|\\.)*"),/.exec(bytes.toString()) ?? [];
    if (image === undefined) throw damaged(name);
    yield { image: JSON.parse(image) as string, bytes };
  }
}

const HEAD_BYTES = 8;

/**
 * A row as stored for a format that can't be appended to: the lengths of both parts as uint32, the image's name and its
 * labels as JSON, the values as float32. All little-endian.
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

/** The rows of a file that encode_row wrote. */
export async function* split_rows(file: FileHandle, name: string): AsyncGenerator<StoredRow> {
  const reader = new FileReader(file, name);
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

/** The inverse of encode_row. */
export function decode_row(row: Uint8Array): Row {
  const bytes = Buffer.from(row.buffer, row.byteOffset, row.byteLength);
  const first = HEAD_BYTES + bytes.readUInt32LE(0);
  const values = Float32Array.from({ length: bytes.readUInt32LE(4) }, (_, i) =>
    bytes.readFloatLE(first + 4 * i),
  );
  return { ...row_texts(bytes), values };
}

/** Reads a file in large chunks and returns small ones. */
class FileReader {
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

  /** The next bytes up to and including a line feed; undefined at the end of the file. */
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
    `${name} doesn't match its journal: it was changed or truncated. Start again with --restart.`,
  );
}
