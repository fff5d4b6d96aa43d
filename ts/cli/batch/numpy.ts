import { Readable } from "node:stream";
import { dump } from "npyjs";
import { ZipFile } from "yazl";
import { type Digest, write_file } from "../../files/index.ts";
import type { Row, RowFile } from "./rows.ts";

/** Rows are written in blocks of about this size. */
const BLOCK_BYTES = 1 << 20;
/** A fixed time, so that the same rows give the same bytes; zip files have none before 1980. */
const NO_TIME = new Date(Date.UTC(1980, 0, 1, 12));
/**
 * The longest name or label in a .npz, in characters. NumPy pads every text of an array to the length of the longest, at four
 * bytes a character, so a single name of a megabyte would turn a million rows into terabytes. No path is longer.
 */
export const MAX_TEXT = 4096;

/** One array, float32 [rows, width]. */
export async function write_npy(path: string, file: RowFile): Promise<Digest> {
  return write_file(path, values_npy(file));
}

/**
 * A zip of arrays as numpy.savez writes it: `images`, and `embeddings` or `labels` and `scores`. It may be larger than
 * 4 GB and can be opened without pickle.
 */
export async function write_npz(path: string, file: RowFile): Promise<Digest> {
  const longest = await longest_texts(file);
  const { count, width } = file;
  const images = texts_npy(file, [count], longest.image, ({ image }) => [image]);
  const labels = () => texts_npy(file, [count, width], longest.label, ({ labels = [] }) => labels);
  return write_file(
    path,
    zipped(
      file.has_labels
        ? { images, scores: values_npy(file), labels: labels() }
        : { images, embeddings: values_npy(file) },
    ),
  );
}

/** An uncompressed zip of .npy files. */
async function* zipped(
  arrays: Readonly<Record<string, AsyncIterable<Uint8Array>>>,
): AsyncGenerator<Uint8Array> {
  const zip = new ZipFile();
  const output = zip.outputStream as Readable;
  const fail = (error: Error) => output.destroy(error);
  zip.on("error", fail);
  const options = { mtime: NO_TIME, compress: false, forceZip64Format: true };
  const sources: Readable[] = [];
  for (const [name, bytes] of Object.entries(arrays))
    zip.addReadStreamLazy(`${name}.npy`, options, (give) => {
      // yazl doesn't handle its sources' errors.
      const source = Readable.from(bytes).on("error", fail);
      sources.push(source);
      give(null, source);
    });
  zip.end();
  try {
    yield* output;
  } finally {
    for (const source of sources) source.destroy();
  }
}

async function* values_npy({ rows, count, width }: RowFile): AsyncGenerator<Uint8Array> {
  yield new Uint8Array(dump(new Float32Array(0), [count, width]));
  yield* in_blocks(rows(), ({ values }) => bytes_of(Float32Array.from(values)));
}

/** NumPy stores an array of texts in UTF-32, all padded to the longest. */
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
  let bytes = 0;
  for await (const row of rows) {
    const encoded = encode(row);
    block.push(encoded);
    bytes += encoded.byteLength;
    if (bytes < BLOCK_BYTES) continue;
    yield Buffer.concat(block);
    [block, bytes] = [[], 0];
  }
  yield Buffer.concat(block);
}

/** At least 1: NumPy has no text type of length 0. */
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

/** In the machine's byte order, which npyjs writes into the header. */
function bytes_of(numbers: Float32Array | Uint32Array): Uint8Array {
  return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}
