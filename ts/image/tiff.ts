import { VitMsnError } from "../errors.ts";
import { check_size, truncated } from "./limits.ts";
import { orientation_of } from "./orientation.ts";

const WIDTH = 256;
const HEIGHT = 257;
const COMPRESSION = 259;
const PHOTOMETRIC = 262;
const ORIENTATION = 274;
const INK_SET = 332;
const XMP = 700;
const JPEG_COMPRESSION = 7;
/**
 * What sharp's libtiff decompresses: none, CCITT (2 to 4), LZW, JPEG (6, 7), deflate (8, 32946), PackBits (32773) and the
 * early methods of NeXT, CCITT, ThunderScan and SGI, and WebP (50001).
 */
const COMPRESSIONS: readonly number[] = [
  1, 2, 3, 4, 5, 6, 7, 8, 32766, 32771, 32773, 32809, 32946, 34676, 34677, 50001,
];
const OTHER_COMPRESSIONS: Readonly<Record<number, string>> = {
  34661: "JBIG",
  34712: "JPEG 2000",
  34887: "LERC",
  34925: "LZMA",
  50000: "Zstandard",
  50002: "JPEG XL",
};
const CMYK = 5;
const YCBCR = 6;
/** What a TIFF's pixels may be besides grey, RGB and palettes. */
const OTHER_PIXELS: Readonly<Record<number, string>> = {
  8: "CIE L*a*b*",
  9: "ICC L*a*b*",
  10: "ITU L*a*b*",
  32803: "a camera's raw",
  32844: "LogL",
  32845: "LogLuv",
  34892: "a camera's raw",
};
/** Bytes of a value by its type. */
const SIZES: Readonly<Record<number, number>> = {
  1: 1,
  2: 1,
  3: 2,
  4: 4,
  6: 1,
  7: 1,
  8: 2,
  9: 4,
  16: 8,
  17: 8,
  18: 8,
};

/** What must be known of a TIFF file before it is decoded. */
export interface TiffHeader {
  orientation: number;
  is_cmyk: boolean;
}

/**
 * Reads the first directory of a TIFF (TIFF 6.0, Adobe 1992) or BigTIFF file; sharp decodes the pixels. Sides and pixels are
 * limited as for all formats.
 *
 * @throws VitMsnError UNSUPPORTED for colors that libtiff would return as others; INVALID_IMAGE.
 */
export function read_tiff_header(bytes: Uint8Array, name: string, max_pixels: number): TiffHeader {
  let tags: Map<number, Value>;
  try {
    tags = read_directory(bytes);
  } catch (error) {
    if (error instanceof RangeError) throw truncated(name, "TIFF");
    throw error;
  }
  const number = (tag: number) => tags.get(tag)?.number;
  check_size(number(WIDTH) ?? 0, number(HEIGHT) ?? 0, name, max_pixels);
  const compression = number(COMPRESSION) ?? 1;
  if (!COMPRESSIONS.includes(compression)) throw other_compression(name, compression);
  const photometric = number(PHOTOMETRIC);
  if (photometric === YCBCR && compression !== JPEG_COMPRESSION) throw unsupported(name, "YCbCr");
  const other = OTHER_PIXELS[photometric ?? 0];
  if (other !== undefined) throw unsupported(name, other);
  const is_cmyk = photometric === CMYK;
  if (is_cmyk && (number(INK_SET) ?? 1) !== 1) throw unsupported(name, "other inks' than CMYK's");
  const tag = number(ORIENTATION);
  const orientation = tag === undefined ? orientation_of(undefined, tags.get(XMP)?.bytes) : tag;
  return { orientation: orientation >= 1 && orientation <= 8 ? orientation : 1, is_cmyk };
}

function unsupported(name: string, colors: string): VitMsnError {
  return new VitMsnError(
    "UNSUPPORTED",
    `${name} is a TIFF image of ${colors} pixels, which isn't supported; convert it to RGB.`,
    { details: { file: name, found: colors } },
  );
}

function other_compression(name: string, compression: number): VitMsnError {
  const found = OTHER_COMPRESSIONS[compression] ?? `method ${compression}`;
  return new VitMsnError(
    "UNSUPPORTED",
    `${name} is a TIFF image compressed by ${found}, which isn't supported; save it with deflate or LZW.`,
    { details: { file: name, found } },
  );
}

/** A tag's first value, and all its bytes. */
interface Value {
  number: number;
  bytes: Uint8Array;
}

function read_directory(bytes: Uint8Array): Map<number, Value> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const is_little_endian = bytes[0] === 0x49;
  const uint16 = (at: number) => view.getUint16(at, is_little_endian);
  const uint32 = (at: number) => view.getUint32(at, is_little_endian);
  const uint64 = (at: number) => Number(view.getBigUint64(at, is_little_endian));
  const is_big = uint16(2) === 43;
  const [offset, inline, entry_size] = is_big ? [uint64, 8, 20] : [uint32, 4, 12];
  const directory = offset(is_big ? 8 : 4);
  const count = is_big ? uint64(directory) : uint16(directory);
  const first = directory + (is_big ? 8 : 2);
  const tags = new Map<number, Value>();
  for (let entry = first, i = 0; i < count; i++, entry += entry_size) {
    const type = uint16(entry + 2);
    const size = SIZES[type];
    if (size === undefined) continue;
    const value_at = entry + (is_big ? 12 : 8);
    const length = size * offset(entry + 4);
    const at = length <= inline ? value_at : offset(value_at);
    if (at + Math.max(size, length) > bytes.length) continue; // a text may be damaged where the image isn't
    const number =
      size === 8 ? uint64(at) : size === 4 ? uint32(at) : size === 2 ? uint16(at) : (bytes[at] as number);
    tags.set(uint16(entry), { number, bytes: bytes.subarray(at, at + length) });
  }
  return tags;
}
