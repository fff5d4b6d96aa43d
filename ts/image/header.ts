import { VitMsnError } from "../errors.ts";
import type { ImageFormat } from "./formats.ts";
import type { Channels } from "./pixels.ts";

/** The most pixels that are decoded: where Pillow raises DecompressionBombError. */
export const MAX_PIXELS = 2 * 89_478_485;
/** The longest side that is decoded: JPEG's own limit. */
export const MAX_SIDE = 65_535;
/** The most bytes read from a file or URL for one picture. */
export const MAX_BYTES = 256 * 1024 * 1024;

/** What the first bytes of a picture say about it. Sizes are before EXIF orientation. */
export interface PictureHeader {
  format: ImageFormat;
  mime: string;
  /** undefined where it isn't cheap to know before decoding (TIFF, some AVIF). */
  width?: number;
  height?: number;
  /** undefined where only the pixels tell: then RGB if all are opaque, else RGBA. */
  channels?: Channels;
  /** Four inks, to be turned into RGB. */
  is_cmyk?: boolean;
}

/**
 * Recognises a picture by its first bytes and reads its size, so that a decompression bomb is refused unread.
 *
 * @param name for messages: the path or URL.
 * @throws VitMsnError INVALID_IMAGE for what is no picture, is empty, truncated or too large;
 *   UNSUPPORTED for pictures of a format that no runtime here decodes.
 */
export function read_header(bytes: Uint8Array, name: string, max_pixels: number): PictureHeader {
  const header = parse(bytes, name);
  if (header.width !== undefined && header.height !== undefined) {
    check_size(header.width, header.height, name, max_pixels);
  }
  return header;
}

/** @throws VitMsnError INVALID_IMAGE for a size of zero and for one above the limits. */
export function check_size(width: number, height: number, name: string, max_pixels: number): void {
  if (width < 1 || height < 1) {
    throw invalid_image(
      `${name} is a picture of ${width}×${height} pixels; it needs at least one pixel.`,
      name,
    );
  }
  if (width > MAX_SIDE || height > MAX_SIDE || width * height > max_pixels) {
    throw invalid_image(
      `${name} has ${width}×${height} pixels, more than the limit of ${max_pixels} pixels and ${MAX_SIDE} a side; scale it down first.`,
      name,
      { width, height, max_pixels },
    );
  }
}

export function truncated(name: string, format: string): VitMsnError {
  return invalid_image(`${name} is a truncated ${format} file; download or copy it again.`, name);
}

/** @throws VitMsnError INVALID_IMAGE for more than MAX_BYTES. */
export function check_byte_count(count: number, name: string): void {
  if (count <= MAX_BYTES) return;
  throw invalid_image(
    `${name} has ${count} bytes, more than the limit of ${MAX_BYTES} for one picture.`,
    name,
  );
}

export function invalid_image(
  message: string,
  file: string,
  details: Record<string, unknown> = {},
  cause?: unknown,
): VitMsnError {
  return new VitMsnError("INVALID_IMAGE", message, { cause, details: { file, ...details } });
}

function parse(bytes: Uint8Array, name: string): PictureHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const { starts, read } of FORMATS) {
    if (!starts(bytes)) continue;
    try {
      return read(view, name);
    } catch (error) {
      // A DataView refuses to read past the end: the file ends within its own header.
      if (error instanceof RangeError) throw truncated(name, "picture");
      throw error;
    }
  }
  throw not_a_picture(bytes, name);
}

const FORMATS: { starts(bytes: Uint8Array): boolean; read(view: DataView, name: string): PictureHeader }[] = [
  { starts: (b) => has(b, 0, "\x89PNG\r\n\x1a\n"), read: read_png },
  { starts: (b) => b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff, read: read_jpeg },
  { starts: (b) => has(b, 0, "RIFF") && has(b, 8, "WEBP"), read: read_webp },
  { starts: (b) => has(b, 0, "GIF87a") || has(b, 0, "GIF89a"), read: read_gif },
  { starts: (b) => has(b, 4, "ftyp") && brands(b).some((brand) => /^avi[fs]$/.test(brand)), read: read_avif },
  {
    starts: (b) => has(b, 0, "II*\0") || has(b, 0, "MM\0*"),
    read: () => ({ format: "TIFF", mime: "image/tiff" }),
  },
  { starts: (b) => has(b, 0, "BM") && [12, 40, 52, 56, 108, 124].includes(b[14] ?? 0), read: read_bmp },
];

function read_png(view: DataView, name: string): PictureHeader {
  if (ascii(view, 12, 4) !== "IHDR")
    throw invalid_image(`${name} is a damaged PNG file: its first chunk isn't IHDR.`, name);
  const colour_type = view.getUint8(25);
  let has_alpha = colour_type === 4 || colour_type === 6;
  // Eight bytes of a chunk's length and type, its data, four of a checksum; tRNS comes before the pixels.
  for (let at = 33, type = ""; at + 8 <= view.byteLength && type !== "IDAT"; ) {
    type = ascii(view, at + 4, 4);
    if (type === "tRNS") has_alpha = true;
    at += 12 + view.getUint32(at);
  }
  return {
    format: "PNG",
    mime: "image/png",
    width: view.getUint32(16),
    height: view.getUint32(20),
    channels: has_alpha ? 4 : colour_type === 0 ? 1 : 3,
  };
}

/** Walks the segments to the frame header (SOF), which holds the size. */
function read_jpeg(view: DataView, name: string): PictureHeader {
  let at = 2;
  while (at < view.byteLength) {
    if (view.getUint8(at) !== 0xff)
      throw invalid_image(`${name} is a damaged JPEG file: no marker at byte ${at}.`, name);
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1;
    } else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
    } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      const components = view.getUint8(at + 9);
      return {
        format: "JPEG",
        mime: "image/jpeg",
        width: view.getUint16(at + 7),
        height: view.getUint16(at + 5),
        channels: components === 1 ? 1 : 3,
        is_cmyk: components === 4,
      };
    } else {
      at += 2 + view.getUint16(at + 2);
    }
  }
  throw truncated(name, "JPEG");
}

function read_webp(view: DataView, name: string): PictureHeader {
  if (8 + view.getUint32(4, true) > view.byteLength) throw truncated(name, "WebP");
  const picture = { format: "WebP", mime: "image/webp" } as const;
  const chunk = ascii(view, 12, 4);
  if (chunk === "VP8X") {
    const side = (at: number) => 1 + view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
    const channels = view.getUint8(20) & 0x10 ? 4 : 3;
    return { ...picture, width: side(24), height: side(27), channels };
  }
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    const channels = bits & 0x10000000 ? 4 : 3;
    return { ...picture, width: 1 + (bits & 0x3fff), height: 1 + ((bits >> 14) & 0x3fff), channels };
  }
  if (chunk === "VP8 ") {
    const side = (at: number) => view.getUint16(at, true) & 0x3fff;
    return { ...picture, width: side(26), height: side(28), channels: 3 };
  }
  throw invalid_image(`${name} is a damaged WebP file: it begins with an unknown chunk.`, name);
}

function read_gif(view: DataView): PictureHeader {
  return {
    format: "GIF",
    mime: "image/gif",
    width: view.getUint16(6, true),
    height: view.getUint16(8, true),
  };
}

/** An AVIF file lists the sizes of all its items ("ispe" properties); the largest is the picture or its canvas. */
function read_avif(view: DataView): PictureHeader {
  const header: PictureHeader = { format: "AVIF", mime: "image/avif" };
  const end = Math.min(view.byteLength - 16, 65_536);
  for (let at = 8; at < end; at++) {
    if (view.getUint32(at) !== 0x69737065) continue;
    const width = view.getUint32(at + 8);
    const height = view.getUint32(at + 12);
    if (width * height >= (header.width ?? 0) * (header.height ?? 0))
      Object.assign(header, { width, height });
  }
  return header;
}

function read_bmp(view: DataView): PictureHeader {
  const has_short_header = view.getUint32(14, true) === 12;
  return {
    format: "BMP",
    mime: "image/bmp",
    width: has_short_header ? view.getUint16(18, true) : view.getInt32(18, true),
    height: Math.abs(has_short_header ? view.getUint16(20, true) : view.getInt32(22, true)),
    channels: 3,
  };
}

const WANTED = "PNG, JPEG, WebP, AVIF or GIF";

function not_a_picture(bytes: Uint8Array, name: string): VitMsnError {
  const other = other_picture_format(bytes);
  if (other !== undefined) {
    return new VitMsnError(
      "UNSUPPORTED",
      `${name} is ${other}, which isn't supported; convert it to ${WANTED}.`,
      {
        details: { file: name, found: other },
      },
    );
  }
  const found = describe(bytes);
  return invalid_image(`${name} is ${found}, not a picture (${WANTED}); check the path or URL.`, name, {
    found,
  });
}

function other_picture_format(bytes: Uint8Array): string | undefined {
  if (has(bytes, 4, "ftyp") && brands(bytes).some((b) => /^(hei|hev|mif1|msf1)/.test(b)))
    return "a HEIC picture";
  if (has(bytes, 0, "\xff\x0a") || has(bytes, 4, "JXL \r\n")) return "a JPEG XL picture";
  if (has(bytes, 4, "jP  \r\n") || has(bytes, 0, "\xff\x4f\xff\x51")) return "a JPEG 2000 picture";
  if (has(bytes, 0, "\0\0\x01\0") || has(bytes, 0, "\0\0\x02\0")) return "a Windows icon";
  if (has(bytes, 0, "8BPS")) return "a Photoshop file";
  // A drawing may name files and URLs that its reader would fetch.
  if (/^<(\?xml|!--|!doctype svg|svg)/i.test(text_start(bytes)) && /<svg[\s>]/i.test(text_start(bytes))) {
    return "an SVG drawing";
  }
  return undefined;
}

function describe(bytes: Uint8Array): string {
  const text = text_start(bytes);
  if (bytes.length === 0) return "empty (0 bytes)";
  if (text.startsWith("version https://git-lfs")) return "a Git LFS pointer (the file itself wasn't fetched)";
  if (has(bytes, 0, "%PDF")) return "a PDF document";
  if (/^<(!doctype html|html|head|body)/i.test(text)) return "an HTML page";
  if (text.startsWith("<")) return "an XML or HTML document";
  if (/^[{[]/.test(text) && is_text(text)) return "JSON or text";
  // Neither text nor bytes are quoted: who may name a file isn't always somebody who may read it.
  return is_text(text) ? "text" : "data of unknown kind";
}

function text_start(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes.subarray(0, 2048)).trim();
}

function is_text(text: string): boolean {
  return /^[\x20-\x7e\s]+$/.test(text);
}

/** The brands of an ISO media file: the major one and those it is compatible with. */
function brands(bytes: Uint8Array): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = Math.min(bytes.length < 16 ? 0 : view.getUint32(0), bytes.length, 256);
  const found: string[] = [];
  for (let at = 8; at + 4 <= end; at += 4) if (at !== 12) found.push(ascii(view, at, 4));
  return found;
}

function has(bytes: Uint8Array, offset: number, word: string): boolean {
  if (bytes.length < offset + word.length) return false;
  for (let i = 0; i < word.length; i++) if (bytes[offset + i] !== word.charCodeAt(i)) return false;
  return true;
}

function ascii(view: DataView, offset: number, length: number): string {
  let text = "";
  for (let i = 0; i < length; i++) text += String.fromCharCode(view.getUint8(offset + i));
  return text;
}
