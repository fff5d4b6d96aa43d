import { VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import type { ImageFormat } from "./formats.ts";
import { is_end, is_frame_header, jpeg_segments, START_OF_SCAN } from "./jpeg.ts";
import { check_size, invalid_image, truncated } from "./limits.ts";
import type { Channels } from "./pixels.ts";
import { brands, has, latin1 } from "./signatures.ts";

/** What the first bytes of an image file say about it. Sizes are before EXIF orientation. */
export interface ImageHeader {
  format: ImageFormat;
  mime: string;
  /** undefined where the format's decoder reads it (TIFF, BMP, PNM, GIF, some AVIF). */
  width?: number;
  height?: number;
  /** undefined where it depends on the pixels: RGB if all are opaque, else RGBA. */
  channels?: Channels;
  /** Four inks, to be turned into RGB. */
  is_cmyk?: boolean;
  /** Where an AVIF file says that colors are stored multiplied by alpha. */
  premultiplied_at?: number;
}

/**
 * Recognises an image file by its first bytes and reads its size, so that a decompression bomb is refused before decoding.
 *
 * @param name for messages: the path or URL.
 * @throws VitMsnError INVALID_IMAGE for files that aren't images, are empty, truncated or too large;
 *   UNSUPPORTED for formats that aren't decoded.
 */
export async function read_header(bytes: Uint8Array, name: string, max_pixels: number): Promise<ImageHeader> {
  const header = await parse(bytes, name);
  if (header === undefined) {
    const { not_an_image } = await on_demand("list of other formats", () => import("./other_formats.ts"));
    throw not_an_image(bytes, name);
  }
  if (header.width !== undefined && header.height !== undefined) {
    check_size(header.width, header.height, name, max_pixels);
  }
  return header;
}

/** undefined where none of FORMATS matches. */
async function parse(bytes: Uint8Array, name: string): Promise<ImageHeader | undefined> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const { starts, read } of FORMATS) {
    if (!starts(bytes)) continue;
    try {
      return await read(view, name, bytes);
    } catch (error) {
      // A DataView refuses to read past the end: the file ends within its own header.
      if (error instanceof RangeError) throw truncated(name, "image");
      throw error;
    }
  }
  return undefined;
}

interface Format {
  starts(bytes: Uint8Array): boolean;
  read(view: DataView, name: string, bytes: Uint8Array): ImageHeader | Promise<ImageHeader>;
}

const FORMATS: readonly Format[] = [
  { starts: (b) => has(b, 0, "\x89PNG\r\n\x1a\n"), read: read_png },
  { starts: (b) => b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff, read: read_jpeg },
  { starts: (b) => has(b, 0, "RIFF") && has(b, 8, "WEBP"), read: read_webp },
  { starts: (b) => has(b, 0, "GIF87a") || has(b, 0, "GIF89a"), read: plain("GIF", "image/gif") },
  { starts: (b) => brands(b).some((brand) => /^avi[fs]$/.test(brand)), read: avif },
  // The last byte but one of each is 43 in a BigTIFF.
  { starts: (b) => /^(II[*+]\0|MM\0[*+])$/.test(latin1(b, 0, 4)), read: plain("TIFF", "image/tiff") },
  {
    starts: (b) => has(b, 0, "BM") && [12, 40, 52, 56, 64, 108, 124].includes(b[14] ?? 0),
    read: plain("BMP", "image/bmp"),
  },
  { starts: (b) => /^P[1-6][\s#]/.test(latin1(b, 0, 3)), read: plain("PNM", "image/x-portable-anymap") },
];

/** For formats whose header their decoder reads. */
function plain(format: ImageFormat, mime: string): () => ImageHeader {
  return () => ({ format, mime });
}

/** Loaded when it is used: most images are of other formats. */
async function avif(view: DataView): Promise<ImageHeader> {
  const { read_avif_header } = await on_demand("reader of AVIF headers", () => import("./avif_header.ts"));
  return read_avif_header(view);
}

function read_png(view: DataView, name: string, bytes: Uint8Array): ImageHeader {
  const first = latin1(bytes, 12, 4);
  if (first === "CgBI") {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} is a PNG file that Xcode made for iOS devices only (CgBI); use the PNG that it was made from.`,
      { details: { file: name, found: first } },
    );
  }
  if (first !== "IHDR" && bytes.length >= 16)
    throw invalid_image(`${name} is a damaged PNG file: its first chunk isn't IHDR.`, name);
  const color_type = view.getUint8(25);
  let has_alpha = color_type === 4 || color_type === 6;
  // Eight bytes of a chunk's length and type, its data, four of a checksum; tRNS comes before the pixels.
  for (let at = 33, type = ""; at + 8 <= view.byteLength && type !== "IDAT"; ) {
    type = latin1(bytes, at + 4, 4);
    if (type === "tRNS") has_alpha = true;
    at += 12 + view.getUint32(at);
  }
  return {
    format: "PNG",
    mime: "image/png",
    width: view.getUint32(16),
    height: view.getUint32(20),
    channels: has_alpha ? 4 : color_type === 0 ? 1 : 3,
  };
}

/** Walks to the end of the image: browsers decode a truncated JPEG as if it were whole, grey where pixels are missing. */
function read_jpeg(view: DataView, name: string, bytes: Uint8Array): ImageHeader {
  let header: ImageHeader | undefined;
  let has_pixels = false;
  for (const { marker, start } of jpeg_segments(bytes)) {
    if (is_end(marker) && header !== undefined && has_pixels) return header;
    if (marker === START_OF_SCAN) has_pixels = true;
    if (!is_frame_header(marker) || header !== undefined) continue;
    const components = view.getUint8(start + 5);
    header = {
      format: "JPEG",
      mime: "image/jpeg",
      width: view.getUint16(start + 3),
      height: view.getUint16(start + 1),
      channels: components === 1 ? 1 : 3,
      is_cmyk: components === 4,
    };
  }
  throw truncated(name, "JPEG");
}

function read_webp(view: DataView, name: string, bytes: Uint8Array): ImageHeader {
  if (8 + view.getUint32(4, true) > view.byteLength) throw truncated(name, "WebP");
  const image = { format: "WebP", mime: "image/webp" } as const;
  const chunk = latin1(bytes, 12, 4);
  if (chunk === "VP8X") {
    const side = (at: number) => 1 + view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
    const channels = view.getUint8(20) & 0x10 ? 4 : 3;
    return { ...image, width: side(24), height: side(27), channels };
  }
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    const channels = bits & 0x10000000 ? 4 : 3;
    return { ...image, width: 1 + (bits & 0x3fff), height: 1 + ((bits >> 14) & 0x3fff), channels };
  }
  if (chunk === "VP8 ") {
    const side = (at: number) => view.getUint16(at, true) & 0x3fff;
    return { ...image, width: side(26), height: side(28), channels: 3 };
  }
  throw invalid_image(`${name} is a damaged WebP file: it begins with an unknown chunk.`, name);
}
