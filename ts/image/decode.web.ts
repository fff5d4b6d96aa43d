import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { type DecodeOptions, finish_decoding } from "./decoding.ts";
import { draw } from "./drawable.ts";
import { fetch_picture } from "./fetch_picture.ts";
import { check_size, invalid_image, MAX_PIXELS, type PictureHeader, read_header } from "./header.ts";
import { take_orientation, turn_upright } from "./orientation.ts";
import type { Pixels } from "./pixels.ts";
import { read_unpremultiplied } from "./unpremultiplied.ts";

/**
 * Decodes a picture file with the platform's decoder: upright by its EXIF orientation, 8 bits a channel, the first
 * frame of an animation, stored values without colour management. Works in pages and workers.
 * Where there is no WebGL, and in turned AVIF files, pixels of low alpha lose precision of colour.
 *
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where the platform can't read the format.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  throw_if_aborted(signal, `Decoding ${name}`);
  const header = read_header(bytes, name, max_pixels);
  const decoded = await decode_upright(bytes, header, name);
  throw_if_aborted(signal, `Decoding ${name}`);
  check_size(decoded.width, decoded.height, name, max_pixels);
  return finish_decoding(decoded, header);
}

async function decode_upright(bytes: Uint8Array, header: PictureHeader, name: string): Promise<Pixels> {
  const { bytes: unturned, orientation } = take_orientation(bytes, header.format);
  return turn_upright(await decode_bitmap(unturned, header, name), orientation);
}

async function decode_bitmap(bytes: Uint8Array, header: PictureHeader, name: string): Promise<Pixels> {
  const blob = new Blob([bytes as BlobPart], { type: header.mime });
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch (cause) {
    if (header.format === "TIFF") throw unsupported(header, name, cause);
    const reason = `it is damaged, or this browser doesn't know ${header.format}`;
    throw invalid_image(`${name} can't be decoded: ${reason}.`, name, {}, cause);
  }
  try {
    const may_have_alpha = header.channels === 4 || header.channels === undefined;
    const unpremultiplied = may_have_alpha ? await read_unpremultiplied(bitmap) : undefined;
    return unpremultiplied ?? draw(bitmap, bitmap.width, bitmap.height, name);
  } finally {
    bitmap.close();
  }
}

function unsupported(header: PictureHeader, name: string, cause: unknown): VitMsnError {
  return new VitMsnError(
    "UNSUPPORTED",
    `${name} is a ${header.format} picture, which this browser can't read; convert it to PNG.`,
    { cause, details: { file: name, found: header.format } },
  );
}

/** The bytes behind a path, which in browsers is a URL relative to the page or worker. */
export async function read_picture_file(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  return fetch_picture(absolute_url(path), signal);
}

function absolute_url(path: string): string {
  try {
    return new URL(path, globalThis.location?.href).href;
  } catch (cause) {
    throw new VitMsnError("INVALID_ARGUMENT", `${path} isn't a URL; give a full one, as https://….`, {
      cause,
    });
  }
}
