import { VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import { type DecodeOptions, decode_file } from "./decoding.ts";
import { draw } from "./drawable.ts";
import { fetch_image, name_of } from "./fetch_image.ts";
import { OWN_FORMATS } from "./formats.ts";
import type { ImageHeader } from "./header.ts";
import { invalid_image } from "./limits.ts";
import { turn_upright } from "./orientation.ts";
import type { Pixels } from "./pixels.ts";

/**
 * Decodes an image file: upright by EXIF or XMP, 8 bits a channel, the first frame of an animation, stored values without
 * color management. Works in pages and workers. PNG, GIF, BMP and PNM are read by this package, others by the platform's decoder.
 * Where there is no WebGL, and in turned AVIF files, the colors of pixels of low alpha are less precise.
 *
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where the platform can't read the format.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  return decode_file(bytes, options, OWN_FORMATS, async (file, header) =>
    turn_upright(await decode_bitmap(file.bytes, header, options.name), file.orientation),
  );
}

async function decode_bitmap(bytes: Uint8Array, header: ImageHeader, name: string): Promise<Pixels> {
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
    const reason = `it is damaged, or this browser doesn't support ${header.format}`;
    throw invalid_image(`${name} can't be decoded: ${reason}.`, name, {}, cause);
  }
  try {
    const may_have_alpha = header.channels === 4 || header.channels === undefined;
    const unpremultiplied = may_have_alpha ? await read_with_alpha(bitmap) : undefined;
    return unpremultiplied ?? draw(bitmap, bitmap.width, bitmap.height, name);
  } finally {
    bitmap.close();
  }
}

async function read_with_alpha(bitmap: ImageBitmap): Promise<Pixels | undefined> {
  const what = "reader of transparent images";
  const { read_unpremultiplied } = await on_demand(what, () => import("./unpremultiplied.ts"));
  return read_unpremultiplied(bitmap);
}

function unsupported(header: ImageHeader, name: string, cause: unknown): VitMsnError {
  return new VitMsnError(
    "UNSUPPORTED",
    `${name} is a ${header.format} image, which this browser can't read; convert it to PNG.`,
    { cause, details: { file: name, found: header.format } },
  );
}

/** The bytes behind a path, which in browsers is a URL relative to the page or worker. */
export async function read_image_file(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  return fetch_image(absolute_url(path), signal);
}

function absolute_url(path: string): string {
  try {
    return new URL(path, globalThis.location?.href).href;
  } catch (cause) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${name_of(path)} isn't a URL; pass a full one, such as https://….`,
      {
        cause,
      },
    );
  }
}
