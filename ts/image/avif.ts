import type { Pacer } from "../engine/pacer.ts";
import type { Pixels } from "./pixels.ts";
import { has, latin1 } from "./signatures.ts";

/** Red's and blue's shares of luma, by nclx's number of a matrix (ITU-T H.273). 2 means unspecified: then the most common one. */
const LUMA: Readonly<Record<number, readonly [red: number, blue: number]>> = {
  1: [0.2126, 0.0722],
  2: [0.299, 0.114],
  4: [0.3, 0.11],
  5: [0.299, 0.114],
  6: [0.299, 0.114],
  7: [0.212, 0.087],
  9: [0.2627, 0.0593],
};

/** How color is stored. */
interface Planes {
  matrix: number;
  is_full_range: boolean;
  /** Columns and rows of pixels that share a chroma sample; 0 and 0 where there is no chroma. */
  chroma_width: number;
  chroma_height: number;
}

/** What to do with the pixels that libheif returns. */
export interface PreparedAvif {
  /** How to turn its pixels, as EXIF numbers it. */
  orientation: number;
  /** How to convert them where libheif then returns Cr, Y and Cb in the place of red, green and blue; undefined where it returns RGB. */
  planes: Planes | undefined;
}

/**
 * Changes an AVIF file (https://aomediacodec.github.io/av1-avif/, boxes by ISO/IEC 14496-12) in place, so that libheif returns
 * color as it is stored: it repeats chroma that several pixels share, where other decoders interpolate. The file then claims to
 * hold RGB, and has no rotation or mirroring, before which chroma must be interpolated.
 */
export function prepare_avif(bytes: Uint8Array): PreparedAvif {
  const { properties, associations } = read_properties(bytes);
  const planes = stored_planes(bytes, properties);
  if (planes === undefined) return { orientation: 1, planes };
  for (const { start } of properties.filter(is_nclx(bytes))) bytes.set([0, 0, 0x80], start + 8);
  return { orientation: take_turning(bytes, properties, associations), planes };
}

/**
 * Removes from an AVIF file, in place, what some browsers apply and others don't: rotation and mirroring, and color profiles.
 *
 * @returns how to turn its pixels, as EXIF numbers it.
 */
export function take_avif_orientation(bytes: Uint8Array): number {
  const { properties, associations } = read_properties(bytes);
  return take_turning(bytes, properties, associations);
}

interface Box {
  type: string;
  /** Where its data lie. */
  start: number;
  end: number;
}

/** The most boxes that are read in one place: as many properties as an item can refer to. */
const MAX_BOXES = 2 ** 15;

/** The boxes in a part of the file. */
export function* boxes(bytes: Uint8Array, from: number, to: number): Generator<Box> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let [at, left] = [from, MAX_BOXES]; at + 8 <= to && left > 0; left--) {
    const size = view.getUint32(at);
    if (size < 8 || at + size > to) return;
    yield { type: latin1(bytes, at + 4, 4), start: at + 8, end: at + size };
    at += size;
  }
}

/** All items' properties, and which item has which: meta (which begins with four more bytes) › iprp › ipco and ipma. */
function read_properties(bytes: Uint8Array): { properties: Box[]; associations: Box[] } {
  const inside = (outer: Iterable<Box>, type: string, skip = 0): Iterable<Box> => {
    for (const box of outer) if (box.type === type) return boxes(bytes, box.start + skip, box.end);
    return [];
  };
  const groups = [...inside(inside(boxes(bytes, 0, bytes.length), "meta", 4), "iprp")];
  return {
    properties: [...inside(groups, "ipco")],
    associations: groups.filter(({ type }) => type === "ipma"),
  };
}

function is_nclx(bytes: Uint8Array): (box: Box) => boolean {
  return ({ type, start, end }) => type === "colr" && end - start >= 11 && has(bytes, start, "nclx");
}

/** undefined where the file doesn't specify how color is stored. */
function stored_planes(bytes: Uint8Array, properties: readonly Box[]): Planes | undefined {
  const configs = properties
    .filter(({ type }) => type === "av1C")
    .map(({ start }) => bytes[start + 2] as number);
  // Monochrome, and whether chroma is shared by two columns and by two rows. Alpha is monochrome, too.
  const kinds = configs.map((bits) => bits & 0x1c);
  const colored = new Set(kinds.filter((kind) => (kind & 0x10) === 0));
  const matrices = new Set(
    properties
      .filter(is_nclx(bytes))
      .map(({ start }) => ((bytes[start + 9] as number) << 8) | (bytes[start + 10] as number)),
  );
  const [nclx] = matrices;
  if (nclx === undefined || matrices.size !== 1 || kinds.length === 0 || colored.size > 1) return undefined;
  const [matrix, is_full_range] = [nclx >> 8, (nclx & 0x80) !== 0];
  if (LUMA[matrix] === undefined) return undefined;
  const [kind] = colored;
  if (kind === undefined) return { matrix, is_full_range, chroma_width: 0, chroma_height: 0 };
  return { matrix, is_full_range, chroma_width: kind & 8 ? 2 : 1, chroma_height: kind & 4 ? 2 : 1 };
}

/** EXIF's number of a turn by 0, 90, 180 and 270 degrees to the left: alone, then mirrored top to bottom, then left to right. */
const ORIENTATIONS = [
  [1, 8, 3, 6],
  [4, 5, 2, 7],
  [2, 7, 4, 5],
] as const;

/** Removes rotation, mirroring and color profiles: their properties get a type that no decoder knows, and none has to. */
function take_turning(bytes: Uint8Array, properties: readonly Box[], associations: readonly Box[]): number {
  let [turns, mirror] = [0, 0];
  const is_taken = ({ type, start }: Box) =>
    type === "irot" || type === "imir" || (type === "colr" && !has(bytes, start, "nclx"));
  const take = (index: number) => {
    const property = properties[index - 1];
    if (property === undefined || !is_taken(property)) return false;
    const value = bytes[property.start] as number;
    if (property.type === "irot") turns = value & 3;
    if (property.type === "imir") mirror = 1 + (value & 1);
    return true;
  };
  for (const { start, end } of associations) {
    const id_size = (bytes[start] as number) < 1 ? 2 : 4;
    const index_size = (bytes[start + 3] as number) & 1 ? 2 : 1;
    // After the version, flags and number of items: for each item its number, a count of properties, and their numbers.
    for (let at = start + 8 + id_size; at < end; at += id_size) {
      const first = at + 1;
      at = first + (bytes[at] as number) * index_size;
      for (let i = first; i + index_size <= Math.min(at, end); i += index_size) {
        const low = bytes[i + index_size - 1] as number;
        // The highest bit: whether a decoder has to know the property.
        if (take(index_size === 1 ? low & 0x7f : (((bytes[i] as number) & 0x7f) << 8) | low))
          bytes[i] = (bytes[i] as number) & 0x7f;
      }
    }
  }
  for (const { start } of properties.filter(is_taken)) bytes.fill(0x58, start - 4, start);
  return ORIENTATIONS[mirror as 0 | 1 | 2][turns as 0 | 1 | 2 | 3];
}

/**
 * Turns Cr, Y and Cb into red, green and blue, in place, with the integer arithmetic of libyuv, which Pillow and Chromium use;
 * between chroma samples it interpolates.
 */
export async function planes_to_rgb(image: Pixels, planes: Planes, pacer: Pacer): Promise<void> {
  const { width, height, channels } = image;
  // Assigned values are clamped.
  const data = new Uint8ClampedArray(image.data.buffer, image.data.byteOffset, image.data.length);
  const { is_full_range } = planes;
  const [red, blue] = LUMA[planes.matrix] as readonly [number, number];
  // In 64ths, from 16 bits.
  const luma_factor = Math.round(((is_full_range ? 64 : (64 * 255) / 219) * 65536) / 257);
  const offset = is_full_range ? 32 : Math.round((-16 * 64 * 255) / 219) + 32;
  const factor = (value: number) => Math.round((is_full_range ? 64 : (64 * 255) / 224) * value);
  const red_of_cr = factor(2 * (1 - red));
  const blue_of_cb = Math.min(128, factor(2 * (1 - blue)));
  const green_of_cr = factor((2 * red * (1 - red)) / (1 - red - blue));
  const green_of_cb = factor((2 * blue * (1 - blue)) / (1 - red - blue));
  const rows = planes.chroma_width === 0 ? undefined : new ChromaRows(image, planes);
  const grey = new Uint8Array(2 * width).fill(128);
  for (let y = 0, at = 0; y < height; y++) {
    const chroma = rows?.next() ?? grey;
    for (let x = 0; x < width; x++, at += channels) {
      const luma = Math.floor(((data[at + 1] as number) * 257 * luma_factor) / 65536) + offset;
      const cr = (chroma[2 * x] as number) - 128;
      const cb = (chroma[2 * x + 1] as number) - 128;
      data[at] = (luma + red_of_cr * cr) >> 6;
      data[at + 1] = (luma - green_of_cr * cr - green_of_cb * cb) >> 6;
      data[at + 2] = (luma + blue_of_cb * cb) >> 6;
    }
    await pacer.step();
  }
}

/** An image's Cr and Cb for each pixel, row by row from the top; a row must be requested before its pixels change. */
class ChromaRows {
  readonly #image: Pixels;
  readonly #planes: Planes;
  /** Four times the samples, interpolated along the row: above, where the current row of pixels lies, and below. */
  #above: Uint16Array;
  #here: Uint16Array;
  #below: Uint16Array;
  readonly #mixed: Uint8Array;
  #y = 0;

  constructor(image: Pixels, planes: Planes) {
    this.#image = image;
    this.#planes = planes;
    const row = () => new Uint16Array(2 * image.width);
    [this.#above, this.#here, this.#below] = [row(), row(), row()];
    this.#mixed = new Uint8Array(2 * image.width);
    this.#read(0, this.#here);
    this.#read(0, this.#above);
    this.#read(1, this.#below);
  }

  /** Cr and Cb alternately. */
  next(): Uint8Array {
    const y = this.#y++;
    const { chroma_height } = this.#planes;
    if (y > 0 && y % chroma_height === 0) {
      [this.#above, this.#here, this.#below] = [this.#here, this.#below, this.#above];
      this.#read(y / chroma_height + 1, this.#below);
    }
    const other = chroma_height === 1 ? this.#here : y % 2 === 0 ? this.#above : this.#below;
    for (let i = 0; i < this.#mixed.length; i++) {
      this.#mixed[i] = (3 * (this.#here[i] as number) + (other[i] as number) + 8) >> 4;
    }
    return this.#mixed;
  }

  /** Below the last samples there are those again. */
  #read(sample_row: number, into: Uint16Array): void {
    const { data, width, height, channels } = this.#image;
    const { chroma_width, chroma_height } = this.#planes;
    const y = sample_row * chroma_height;
    if (y >= height) {
      into.set(this.#here);
      return;
    }
    for (let x = 0, to = 0, at = y * width * channels; x < width; x++, at += channels) {
      const is_edge = x === 0 || x === width - 1;
      const to_other = chroma_width === 1 || is_edge ? 0 : x % 2 === 0 ? -channels : channels;
      for (let c = 0; c <= 2; c += 2) {
        into[to++] = 3 * (data[at + c] as number) + (data[at + c + to_other] as number);
      }
    }
  }
}
