import { boxes, take_avif_orientation } from "./avif.ts";
import type { DecodeOptions } from "./decoding.ts";
import type { ImageFormat } from "./formats.ts";
import type { ImageHeader } from "./header.ts";
import { turn_upright, type UnturnedFile } from "./orientation.ts";
import { is_opaque, type Pixels } from "./pixels.ts";
import { read_lossless_webp } from "./readers/webp_lossless.ts";
import { latin1 } from "./signatures.ts";

const WEBP_HEADER = 12;
/** Of a frame's size, place and duration. */
const FRAME_HEADER = 16;

/**
 * Decodes a WebP or AVIF file, which may be transparent, upright. Browsers multiply color by alpha when they decode, and some do so
 * whatever createImageBitmap's premultiplyAlpha asks for: where pixels are transparent, color is read from a file without alpha.
 *
 * @param decode the browser's decoder. It is given other files, whose orientation was removed.
 */
export async function decode_transparent(
  file: UnturnedFile,
  header: ImageHeader,
  options: DecodeOptions,
  decode: (bytes: Uint8Array) => Promise<Pixels>,
): Promise<Pixels> {
  const { bytes } = file;
  if (header.format === "AVIF") {
    const orientation = take_avif_orientation(bytes);
    return turn_upright(await decode_twice(bytes, header.format, decode), orientation);
  }
  const { width = 0, height = 0 } = header;
  const own = await read_lossless_webp(bytes, { width, height }, options);
  return turn_upright(own ?? (await decode_twice(bytes, header.format, decode)), file.orientation);
}

async function decode_twice(
  bytes: Uint8Array,
  format: ImageFormat,
  decode: (bytes: Uint8Array) => Promise<Pixels>,
): Promise<Pixels> {
  const pixels = await decode(bytes);
  if (is_opaque(pixels.data)) return pixels;
  const opaque = await decode(format === "WebP" ? opaque_webp(bytes) : opaque_avif(bytes));
  for (let at = 3; at < opaque.data.length; at += 4) opaque.data[at] = pixels.data[at] as number;
  return opaque;
}

/** A WebP file (https://developers.google.com/speed/webp/docs/riff_container) without its alpha. */
function opaque_webp(bytes: Uint8Array): Uint8Array {
  const file = new Uint8Array(bytes.length);
  file.set(bytes.subarray(0, WEBP_HEADER));
  const end = copy_chunks(bytes, WEBP_HEADER, bytes.length, file, WEBP_HEADER);
  new DataView(file.buffer).setUint32(4, end - 8, true);
  return file.subarray(0, end);
}

/** Copies all chunks but those of alpha, and returns where the copy ends. */
function copy_chunks(from: Uint8Array, start: number, end: number, to: Uint8Array, at: number): number {
  const [source, copy] = [new DataView(from.buffer, from.byteOffset), new DataView(to.buffer)];
  for (let chunk = start, next = 0; chunk + 8 <= end; chunk = next) {
    const type = latin1(from, chunk, 4);
    const size = source.getUint32(chunk + 4, true);
    next = Math.min(end, chunk + 8 + size + (size % 2));
    if (type === "ALPH") continue;
    to.set(from.subarray(chunk, next), at);
    // The flags of what the file has, and of what the lossless stream has. Both have alpha's in the same bit.
    if (type === "VP8X") copy.setUint8(at + 8, copy.getUint8(at + 8) & ~0x10);
    if (type === "VP8L") copy.setUint8(at + 12, copy.getUint8(at + 12) & ~0x10);
    if (type !== "ANMF") {
      at += next - chunk;
      continue;
    }
    const frame = at + 8;
    at = copy_chunks(from, chunk + 8 + FRAME_HEADER, next, to, frame + FRAME_HEADER);
    copy.setUint32(frame - 4, at - frame, true);
  }
  return at;
}

/** Its alpha is another image, which a reference of the type "auxl" connects with the first. */
function opaque_avif(bytes: Uint8Array): Uint8Array {
  const file = bytes.slice();
  for (const meta of boxes(bytes, 0, bytes.length)) {
    if (meta.type !== "meta") continue;
    for (const references of boxes(bytes, meta.start + 4, meta.end)) {
      if (references.type !== "iref") continue;
      for (const { type, start } of boxes(bytes, references.start + 4, references.end))
        if (type === "auxl") file.fill(0x58, start - 4, start);
    }
  }
  return file;
}
