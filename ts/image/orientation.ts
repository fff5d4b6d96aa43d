import type { ImageFormat } from "./formats.ts";
import type { Pixels } from "./pixels.ts";

const WEBP_EXIF = 0x45584946; // "EXIF"
const UNKNOWN_CHUNK = 0x58585858;
const PNG_EXIF = 0x65584966; // "eXIf"
const JPEG_EXIF = 0x45786966; // "Exif"
const APP1 = 0xe1;
const START_OF_SCAN = 0xda;
const ORIENTATION_TAG = 0x0112;

/**
 * Takes the EXIF orientation out of a PNG or WebP file: browsers disagree whether to apply it, and those that do
 * lose the colour of transparent pixels over it. Files of other formats are left as they are.
 *
 * @returns the file, without its EXIF chunk where that turns the picture, and the orientation, 1 to 8.
 */
export function take_orientation(
  bytes: Uint8Array,
  format: ImageFormat,
): { bytes: Uint8Array; orientation: number } {
  if (format === "PNG") return take_from_png(bytes);
  if (format === "WebP") return take_from_webp(bytes);
  return { bytes, orientation: 1 };
}

/** As take_orientation, for JPEG files too, which browsers turn alike. */
export function take_any_orientation(
  bytes: Uint8Array,
  format: ImageFormat,
): { bytes: Uint8Array; orientation: number } {
  return format === "JPEG" ? take_from_jpeg(bytes) : take_orientation(bytes, format);
}

/** EXIF is in a segment APP1 before the picture's own. */
function take_from_jpeg(bytes: Uint8Array): { bytes: Uint8Array; orientation: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 2; at + 10 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1] as number;
    if (marker === START_OF_SCAN) break;
    const end = at + 2 + view.getUint16(at + 2);
    if (marker === APP1 && view.getUint32(at + 4) === JPEG_EXIF) {
      const orientation = exif_orientation(bytes.subarray(at + 10, end));
      if (orientation === 1) break;
      const unturned = bytes.slice();
      new DataView(unturned.buffer).setUint32(at + 4, UNKNOWN_CHUNK);
      return { bytes: unturned, orientation };
    }
    at = end;
  }
  return { bytes, orientation: 1 };
}

function take_from_png(bytes: Uint8Array): { bytes: Uint8Array; orientation: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const end = at + 12 + view.getUint32(at);
    if (view.getUint32(at + 4) === PNG_EXIF) {
      const orientation = exif_orientation(bytes.subarray(at + 8, end - 4));
      if (orientation === 1) break;
      const rest = new Uint8Array(bytes.length - Math.min(end, bytes.length) + at);
      rest.set(bytes.subarray(0, at));
      rest.set(bytes.subarray(end), at);
      return { bytes: rest, orientation };
    }
    at = end;
  }
  return { bytes, orientation: 1 };
}

function take_from_webp(bytes: Uint8Array): { bytes: Uint8Array; orientation: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (view.getUint32(at) === WEBP_EXIF) {
      const orientation = exif_orientation(bytes.subarray(at + 8, at + 8 + length));
      if (orientation === 1) break;
      const copy = bytes.slice();
      // Readers skip chunks that they don't know.
      new DataView(copy.buffer).setUint32(at, UNKNOWN_CHUNK);
      return { bytes: copy, orientation };
    }
    at += 8 + length + (length % 2);
  }
  return { bytes, orientation: 1 };
}

/** The orientation in an EXIF block (a TIFF directory), 1 where there is none or it is damaged. */
function exif_orientation(exif: Uint8Array): number {
  const has_prefix = exif[0] === 0x45 && exif[1] === 0x78; // "Exif\0\0", which JPEG's form begins with
  const tiff = has_prefix ? exif.subarray(6) : exif;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  try {
    const is_little_endian = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, is_little_endian);
    const count = view.getUint16(directory, is_little_endian);
    for (let i = 0; i < count; i++) {
      const entry = directory + 2 + 12 * i;
      if (view.getUint16(entry, is_little_endian) !== ORIENTATION_TAG) continue;
      const orientation = view.getUint16(entry + 8, is_little_endian);
      return orientation >= 1 && orientation <= 8 ? orientation : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** Turns a picture upright, by the EXIF orientation it was taken in. */
export function turn_upright(source: Pixels, orientation: number): Pixels {
  if (orientation === 1) return source;
  const { channels } = source;
  const is_swapped = orientation >= 5;
  const width = is_swapped ? source.height : source.width;
  const height = is_swapped ? source.width : source.height;
  const is_from_right = [2, 3, 7, 8].includes(orientation);
  const is_from_bottom = [3, 4, 6, 7].includes(orientation);
  const data = new Uint8Array(source.data.length);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [column, row] = is_swapped ? [y, x] : [x, y];
      const from_x = is_from_right ? source.width - 1 - column : column;
      const from_y = is_from_bottom ? source.height - 1 - row : row;
      const from = (from_y * source.width + from_x) * channels;
      for (let c = 0; c < channels; c++) data[to++] = source.data[from + c] as number;
    }
  }
  return { data, width, height, channels };
}
