import type { ImageFormat } from "./formats.ts";
import { jpeg_segments, START_OF_SCAN } from "./jpeg.ts";
import type { Pixels } from "./pixels.ts";

const APP1 = 0xe1;
const APP2 = 0xe2;
const JPEG_EXIF = "Exif\0\0";
const JPEG_PROFILE = "ICC_PROFILE\0";
const JPEG_XMP = "http://ns.adobe.com/xap/1.0/\0";
const ORIENTATION_TAG = 0x0112;
/** How to read a value of the types BYTE, SHORT, LONG, SBYTE, SSHORT and SLONG; the standard requires SHORT, phones write others. */
const BYTES_OF_TYPE: Readonly<Record<number, number>> = { 1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4 };

/** An image file, and the orientation of its pixels as EXIF numbers it: 1 to 8. */
export interface UnturnedFile {
  bytes: Uint8Array;
  orientation: number;
}

/**
 * The orientation of a JPEG or WebP file, by EXIF or, where EXIF has none, by XMP. The returned file has no EXIF:
 * browsers disagree on which values they apply, and lose the colour of transparent pixels when they do. It has no color
 * profile either: WebKit applies one even if it is asked not to.
 */
export function take_orientation(bytes: Uint8Array, format: ImageFormat): UnturnedFile {
  const metadata = format === "JPEG" ? jpeg_metadata : format === "WebP" ? webp_metadata : undefined;
  if (metadata === undefined) return { bytes, orientation: 1 };
  let unturned: Uint8Array | undefined;
  let xmp: Uint8Array | undefined;
  let size = 0;
  for (const { name, data } of metadata(bytes)) {
    if (name === undefined) xmp = data;
    else {
      unturned ??= bytes.slice();
      // Readers skip what they don't know.
      unturned.fill(0x58, name, name + 4);
      size += data.length;
    }
  }
  if (unturned === undefined) return { bytes, orientation: orientation_of(undefined, xmp) };
  const exif = new Uint8Array(size);
  let at = 0;
  for (const { name, data } of metadata(bytes)) {
    if (name === undefined) continue;
    exif.set(data, at);
    at += data.length;
  }
  return { bytes: unturned, orientation: orientation_of(exif, xmp) };
}

/** A part of a file's EXIF, which may have very many, its XMP, or what is removed without being read. */
interface Metadata {
  /** Where the name is of what is removed; undefined for XMP. */
  name?: number;
  data: Uint8Array;
}

const NOTHING = new Uint8Array(0);

function* jpeg_metadata(bytes: Uint8Array): Generator<Metadata> {
  for (const { marker, start, end } of jpeg_segments(bytes)) {
    if (marker === START_OF_SCAN) return;
    if (marker === APP2 && starts_with(bytes, start, JPEG_PROFILE)) yield { name: start, data: NOTHING };
    if (marker !== APP1) continue;
    if (starts_with(bytes, start, JPEG_EXIF)) {
      yield { name: start, data: bytes.subarray(start + JPEG_EXIF.length, end) };
    } else if (starts_with(bytes, start, JPEG_XMP)) {
      yield { data: bytes.subarray(start + JPEG_XMP.length, end) };
    }
  }
}

/** Only what the header's flags announce counts, as for libwebp and browsers: a file without such a header has none. */
function* webp_metadata(bytes: Uint8Array): Generator<Metadata> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const flags = starts_with(bytes, 12, "VP8X") ? (bytes[20] ?? 0) : 0;
  let has_exif = false;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (flags & 8 && starts_with(bytes, at, "EXIF")) {
      // A second one is removed from the file as well, but not read.
      yield { name: at, data: has_exif ? NOTHING : data };
      has_exif = true;
    }
    if (flags & 0x20 && starts_with(bytes, at, "ICCP")) yield { name: at, data: NOTHING };
    if (flags & 4 && starts_with(bytes, at, "XMP ")) yield { data };
    at += 8 + length + (length % 2);
  }
}

function starts_with(bytes: Uint8Array, at: number, word: string): boolean {
  for (let i = 0; i < word.length; i++) if (bytes[at + i] !== word.charCodeAt(i)) return false;
  return true;
}

/** The orientation by EXIF or, where it has no such tag, by XMP, as in Pillow's exif_transpose; 1 where neither has one. */
export function orientation_of(exif: Uint8Array | undefined, xmp: Uint8Array | undefined): number {
  const found = (exif && exif_orientation(exif)) ?? (xmp && xmp_orientation(xmp)) ?? 1;
  return found >= 1 && found <= 8 ? found : 1;
}

/** The orientation in an EXIF block (a TIFF directory); undefined where there is none or it is damaged. */
function exif_orientation(exif: Uint8Array): number | undefined {
  const tiff = starts_with(exif, 0, JPEG_EXIF) ? exif.subarray(JPEG_EXIF.length) : exif;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  try {
    const is_little_endian = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, is_little_endian);
    const count = view.getUint16(directory, is_little_endian);
    for (let i = 0; i < count; i++) {
      const entry = directory + 2 + 12 * i;
      if (view.getUint16(entry, is_little_endian) === ORIENTATION_TAG) {
        return orientation_value(view, entry, is_little_endian);
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return undefined;
}

/** The first value of a directory's entry; values of up to four bytes lie in it. */
function orientation_value(view: DataView, entry: number, is_little_endian: boolean): number | undefined {
  const size = BYTES_OF_TYPE[view.getUint16(entry + 2, is_little_endian)];
  if (size === undefined) return undefined;
  const count = view.getUint32(entry + 4, is_little_endian);
  const at = size * count <= 4 ? entry + 8 : view.getUint32(entry + 8, is_little_endian);
  if (size === 1) return view.getUint8(at);
  return size === 2 ? view.getUint16(at, is_little_endian) : view.getUint32(at, is_little_endian);
}

/** As an attribute or as an element. */
function xmp_orientation(xmp: Uint8Array): number | undefined {
  const digit = /tiff:Orientation(?:="|>)([0-9])/.exec(new TextDecoder("latin1").decode(xmp))?.[1];
  return digit === undefined ? undefined : Number(digit);
}

/** Turns an image upright by its EXIF orientation. */
export function turn_upright(source: Pixels, orientation: number): Pixels {
  if (orientation === 1) return source;
  const { channels } = source;
  const is_swapped = orientation >= 5;
  const width = is_swapped ? source.height : source.width;
  const height = is_swapped ? source.width : source.height;
  const is_from_right = [2, 3, 7, 8].includes(orientation);
  const is_from_bottom = [3, 4, 6, 7].includes(orientation);
  const row = source.width * channels;
  const column_step = is_from_right ? -channels : channels;
  const row_step = is_from_bottom ? -row : row;
  const [x_step, y_step] = is_swapped ? [row_step, column_step] : [column_step, row_step];
  const first = (is_from_right ? row - channels : 0) + (is_from_bottom ? (source.height - 1) * row : 0);
  const data = new Uint8Array(source.data.length);
  for (let y = 0, to = 0; y < height; y++) {
    let from = first + y * y_step;
    for (let x = 0; x < width; x++, from += x_step) {
      for (let c = 0; c < channels; c++) data[to++] = source.data[from + c] as number;
    }
  }
  return { data, width, height, channels };
}
