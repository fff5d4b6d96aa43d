import { createWriteStream } from "node:fs";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { dump } from "npyjs";
import { ZipFile } from "yazl";
import type { Row, RowFile } from "./rows.ts";

/** Rows whose bytes are handed on together. */
const ROWS_AT_A_TIME = 256;
/** Zip files have no time before 1980; a fixed one keeps the same rows the same bytes. */
const NO_TIME = new Date(Date.UTC(1980, 0, 1, 12));

/** One array, float32 [rows, width]. */
export async function write_npy(path: string, file: RowFile): Promise<void> {
  await pipeline(Readable.from(values_npy(file)), createWriteStream(path));
}

/**
 * A zip of arrays, as numpy.savez writes it: `images`, and `embeddings` or `labels` and `scores`. It may be larger than
 * 4 GB, and is opened without pickle.
 */
export async function write_npz(path: string, file: RowFile): Promise<void> {
  const zip = new ZipFile();
  const options = { mtime: NO_TIME, compress: false, forceZip64Format: true };
  const add = (name: string, bytes: AsyncIterable<Uint8Array>) =>
    zip.addReadStreamLazy(`${name}.npy`, options, (give) => give(null, Readable.from(bytes)));
  const longest = await longest_texts(file);
  add(
    "images",
    texts_npy(file, [file.count], longest.image, ({ image }) => [image]),
  );
  add(file.has_labels ? "scores" : "embeddings", values_npy(file));
  if (file.has_labels)
    add(
      "labels",
      texts_npy(file, [file.count, file.width], longest.label, ({ labels = [] }) => labels),
    );
  const written = pipeline(zip.outputStream, createWriteStream(path));
  zip.on("error", (error: Error) => (zip.outputStream as Readable).destroy(error));
  zip.end();
  await written;
}

async function* values_npy({ rows, count, width }: RowFile): AsyncGenerator<Uint8Array> {
  yield new Uint8Array(dump(new Float32Array(0), [count, width]));
  yield* in_blocks(rows(), ({ values }) => bytes_of(Float32Array.from(values)));
}

/** NumPy keeps texts of an array in UTF-32, all as long as the longest. */
async function* texts_npy(
  { rows }: RowFile,
  shape: number[],
  longest: number,
  texts_of: (row: Row) => readonly string[],
): AsyncGenerator<Uint8Array> {
  yield new Uint8Array(dump(new Uint32Array(0), shape, { dtype: `U${longest}` }));
  yield* in_blocks(rows(), (row) => {
    const texts = texts_of(row);
    const points = new Uint32Array(longest * texts.length);
    texts.forEach((text, i) => {
      points.set(code_points(text), i * longest);
    });
    return bytes_of(points);
  });
}

async function* in_blocks(
  rows: AsyncIterable<Row>,
  encode: (row: Row) => Uint8Array,
): AsyncGenerator<Uint8Array> {
  let block: Uint8Array[] = [];
  for await (const row of rows) {
    block.push(encode(row));
    if (block.length < ROWS_AT_A_TIME) continue;
    yield Buffer.concat(block);
    block = [];
  }
  yield Buffer.concat(block);
}

/** NumPy has no texts of length 0. */
async function longest_texts({ rows }: RowFile): Promise<{ image: number; label: number }> {
  const longest = { image: 1, label: 1 };
  for await (const { image, labels = [] } of rows()) {
    longest.image = Math.max(longest.image, code_points(image).length);
    for (const label of labels) longest.label = Math.max(longest.label, code_points(label).length);
  }
  return longest;
}

function code_points(text: string): number[] {
  return Array.from(text, (character) => character.codePointAt(0) as number);
}

/** In the byte order of the machine, which is what npyjs writes into the header. */
function bytes_of(numbers: Float32Array | Uint32Array): Uint8Array {
  return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}
