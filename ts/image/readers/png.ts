import { throw_if_aborted } from "../../errors.ts";
import type { DecodeOptions } from "../decoding.ts";
import { invalid_image } from "../limits.ts";
import { turn_upright } from "../orientation.ts";
import type { Channels, Pixels } from "../pixels.ts";
import { Adler32, inflate, zlib_data } from "./inflate.ts";
import { type PngFile, png_data, read_png_file } from "./png_file.ts";

/** Samples a pixel by color type: grey, (none), RGB, palette index, grey and alpha, (none), RGBA. */
const SAMPLES = [1, 0, 3, 1, 2, 0, 4] as const;

/** A rectangle of pixels that are stored together: where they begin in the image, and how far they are apart. */
interface Pass {
  x: number;
  y: number;
  x_step: number;
  y_step: number;
}

const WHOLE: readonly Pass[] = [{ x: 0, y: 0, x_step: 1, y_step: 1 }];
/** Adam7. */
const INTERLACED: readonly Pass[] = [
  { x: 0, y: 0, x_step: 8, y_step: 8 },
  { x: 4, y: 0, x_step: 8, y_step: 8 },
  { x: 0, y: 4, x_step: 4, y_step: 8 },
  { x: 2, y: 0, x_step: 4, y_step: 4 },
  { x: 0, y: 2, x_step: 2, y_step: 4 },
  { x: 1, y: 0, x_step: 2, y_step: 2 },
  { x: 0, y: 1, x_step: 1, y_step: 2 },
];

/**
 * Decodes a PNG file (https://www.w3.org/TR/png-3/) as Pillow does: 16 bits become 8, the other frames of an animation are
 * skipped, and rows that are missing at the end of the data are black. Browsers' decoders do otherwise. Inflating stops when the
 * image is full.
 *
 * @throws VitMsnError INVALID_IMAGE for damaged data; ABORTED.
 */
export async function read_png(bytes: Uint8Array, { name, signal }: DecodeOptions): Promise<Pixels> {
  const file = await read_png_file(bytes, name);
  const { width, height } = file;
  const channels = channels_of(file);
  const image = { data: new Uint8Array(width * height * channels), width, height, channels };
  const damaged = (what: string) => invalid_image(`${name} is a damaged PNG file: ${what}.`, name);
  const rows = stored_rows(file, image, damaged);
  const checksum = new Adler32();
  let row = rows.next().value;
  let filled = 0;
  const stream = png_data(bytes, file);
  const parts = inflate(zlib_data(stream));
  for (;;) {
    const { value, done } = await parts.next();
    throw_if_aborted(signal, `Decoding ${name}`);
    if (done) {
      if (row && (!value || filled > 0))
        throw invalid_image(`${name} is a truncated or damaged PNG file; download or copy it again.`, name);
      if (row) finish_black(rows, row);
      if (!checksum.is_in(stream)) throw damaged("its pixels don't fit their checksum");
      break;
    }
    checksum.add(value);
    let at = 0;
    while (row && at < value.length) {
      const taken = value.subarray(at, at + row.length - filled);
      row.set(taken, filled);
      filled += taken.length;
      at += taken.length;
      if (filled < row.length) continue;
      row = rows.next().value;
      filled = 0;
    }
    // There is more than the image, and the checksum is one of all of it.
    if (at < value.length) break;
  }
  await parts.return(true);
  return turn_upright(image, file.orientation);
}

/** Fills the rows that are missing at the end of the data. */
function finish_black(rows: Generator<Uint8Array, undefined>, row: Uint8Array): void {
  for (let rest: Uint8Array | undefined = row; rest; rest = rows.next().value) rest.fill(0);
}

function channels_of({ color_type, transparency }: PngFile): Channels {
  if (color_type === 4 || color_type === 6 || transparency !== undefined) return 4;
  return color_type === 0 ? 1 : 3;
}

/** Yields a buffer for each stored row, which begins with its filter's number; once it is filled, its pixels go into the image. */
function* stored_rows(
  file: PngFile,
  image: Pixels,
  damaged: (what: string) => Error,
): Generator<Uint8Array, undefined> {
  const bits = (SAMPLES[file.color_type] as number) * file.bit_depth;
  const distance = Math.max(1, bits >> 3);
  const put = row_writer(file, image);
  for (const pass of file.is_interlaced ? INTERLACED : WHOLE) {
    const columns = Math.ceil((file.width - pass.x) / pass.x_step);
    const lines = Math.ceil((file.height - pass.y) / pass.y_step);
    if (columns <= 0 || lines <= 0) continue;
    let [row, above] = [0, 0].map(() => new Uint8Array(1 + Math.ceil((columns * bits) / 8))) as [
      Uint8Array,
      Uint8Array,
    ];
    for (let line = 0; line < lines; line++) {
      yield row;
      if (!unfilter(row, above, distance)) throw damaged(`there is no filter ${row[0]}`);
      put(row, columns, pass, pass.y + line * pass.y_step);
      [row, above] = [above, row];
    }
  }
  return undefined;
}

/** Undoes a row's filter. A row's first byte is its filter's number. */
function unfilter(row: Uint8Array, above: Uint8Array, distance: number): boolean {
  const filter = row[0] as number;
  // Left of the row, bytes count as zero.
  const left = (i: number) => (i > distance ? (row[i - distance] as number) : 0);
  if (filter === 1) {
    for (let i = distance + 1; i < row.length; i++)
      row[i] = (row[i] as number) + (row[i - distance] as number);
  } else if (filter === 2) {
    for (let i = 1; i < row.length; i++) row[i] = (row[i] as number) + (above[i] as number);
  } else if (filter === 3) {
    for (let i = 1; i < row.length; i++)
      row[i] = (row[i] as number) + ((left(i) + (above[i] as number)) >> 1);
  } else if (filter === 4) {
    for (let i = 1; i < row.length; i++) {
      const corner = i > distance ? (above[i - distance] as number) : 0;
      row[i] = (row[i] as number) + paeth(left(i), above[i] as number, corner);
    }
  }
  return filter <= 4;
}

/** Paeth's predictor: whichever neighbour is nearest to left + above - corner. */
function paeth(left: number, above: number, corner: number): number {
  const [to_left, to_above] = [Math.abs(above - corner), Math.abs(left - corner)];
  const to_corner = Math.abs(left + above - 2 * corner);
  if (to_left <= to_above && to_left <= to_corner) return left;
  return to_above <= to_corner ? above : corner;
}

/** Writes a stored row's pixels into the image. */
function row_writer(
  file: PngFile,
  { data, channels }: Pixels,
): (row: Uint8Array, columns: number, pass: Pass, y: number) => void {
  const { bit_depth, color_type, width } = file;
  const samples = SAMPLES[color_type] as number;
  const palette = color_type === 3 ? palette_of(file) : undefined;
  const key = color_type === 3 ? undefined : transparent_color(file);
  const max = 2 ** Math.min(bit_depth, 8) - 1;
  const sample = reader_of_samples(bit_depth);
  const is_as_stored = bit_depth === 8 && samples === channels && palette === undefined;
  return (row, columns, { x, x_step }, y) => {
    let to = (y * width + x) * channels;
    if (is_as_stored && x_step === 1) {
      data.set(row.subarray(1), to);
      return;
    }
    for (let column = 0; column < columns; column++, to += x_step * channels) {
      if (palette !== undefined) {
        const entry = sample(row, column) * 4;
        for (let c = 0; c < channels; c++) data[to + c] = palette[entry + c] as number;
        continue;
      }
      let is_key = key !== undefined;
      for (let c = 0; c < samples; c++) {
        const value = sample(row, column * samples + c);
        if (is_key && value !== key?.[c]) is_key = false;
        data[to + c] = bit_depth === 16 ? value >> 8 : (value * 255) / max;
      }
      if (channels === 4) widen(data, to, samples, is_key);
    }
  };
}

/** Expands the one to four samples at `at` to four channels. */
function widen(data: Pixels["data"], at: number, samples: number, is_transparent: boolean): void {
  const alpha = samples === 2 ? (data[at + 1] as number) : is_transparent ? 0 : 255;
  if (samples <= 2) data[at + 1] = data[at + 2] = data[at] as number;
  if (samples < 4) data[at + 3] = alpha;
}

/** The sample of a row, by its place in it. */
function reader_of_samples(bit_depth: number): (row: Uint8Array, index: number) => number {
  if (bit_depth === 16) return (row, i) => ((row[1 + 2 * i] as number) << 8) | (row[2 + 2 * i] as number);
  if (bit_depth === 8) return (row, i) => row[1 + i] as number;
  const [in_byte, mask] = [8 / bit_depth, 2 ** bit_depth - 1];
  return (row, i) =>
    ((row[1 + Math.floor(i / in_byte)] as number) >> (8 - bit_depth * (1 + (i % in_byte)))) & mask;
}

/** RGBA by index; black where the palette has no such entry. */
function palette_of({ palette = new Uint8Array(0), transparency }: PngFile): Uint8Array {
  const entries = new Uint8Array(256 * 4);
  for (let i = 0; i < 256; i++) {
    entries.set(palette.subarray(3 * i, 3 * i + 3), 4 * i);
    entries[4 * i + 3] = transparency?.[i] ?? 255;
  }
  return entries;
}

/** The samples of the color that is transparent, as they are stored. */
function transparent_color({ transparency, color_type }: PngFile): number[] | undefined {
  if (transparency === undefined || transparency.length < 2 * (SAMPLES[color_type] as number))
    return undefined;
  return Array.from(
    { length: transparency.length >> 1 },
    (_, i) => ((transparency[2 * i] as number) << 8) | (transparency[2 * i + 1] as number),
  );
}
