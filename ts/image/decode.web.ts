import { VitMsnError } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import { type DecodeOptions, decode_file } from "./decoding.ts";
import { draw } from "./drawable.ts";
import { fetch_image, name_of } from "./fetch_image.ts";
import { OWN_FORMATS } from "./formats.ts";
import type { ImageHeader } from "./header.ts";
import { turn_upright } from "./orientation.ts";
import type { Pixels } from "./pixels.ts";

/**
 * Decodes an image file: upright by EXIF or XMP, 8 bits a channel, the first frame of an animation, stored values without
 * color management. Works in pages and workers. PNG, GIF, BMP and PNM are read by this package, others by the platform's decoder.
 *
 * @throws VitMsnError INVALID_IMAGE, or UNSUPPORTED where the platform can't read the format.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  return decode_file(bytes, options, OWN_FORMATS, async (file, header) => {
    const decode = (unturned: Uint8Array) => decode_bitmap(unturned, header, options.name);
    const may_be_transparent = header.channels === 4 || header.format === "AVIF";
    if (!may_be_transparent) return turn_upright(await decode(file.bytes), file.orientation);
    const what = "image reader";
    const { decode_transparent } = await on_demand(what, () => import("./transparent.ts"));
    return decode_transparent(file, header, options, decode);
  });
}

async function decode_bitmap(bytes: Uint8Array, header: ImageHeader, name: string): Promise<Pixels> {
  const blob = new Blob([bytes as BlobPart], { type: header.mime });
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch (cause) {
    const { decode_error } = await on_demand("image errors", () => import("./decode_error.ts"));
    throw decode_error(header.format, name, cause);
  }
  try {
    return draw(bitmap, bitmap.width, bitmap.height, name);
  } finally {
    bitmap.close();
  }
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
