import { throw_if_aborted } from "../../errors.ts";
import type { DecodeOptions } from "../decoding.ts";
import type { ImageFormat } from "../formats.ts";
import type { UnturnedFile } from "../orientation.ts";
import type { Pixels } from "../pixels.ts";
import { read_bmp } from "./bmp.ts";
import { read_gif } from "./gif.ts";
import { read_png } from "./png.ts";
import { read_png_file, without_metadata } from "./png_file.ts";
import { read_pnm } from "./pnm.ts";

/** Decodes a PNG, GIF, BMP or PNM file upright. @throws VitMsnError INVALID_IMAGE, UNSUPPORTED, ABORTED. */
export async function read_image(
  bytes: Uint8Array,
  format: ImageFormat,
  options: DecodeOptions,
): Promise<Pixels> {
  throw_if_aborted(options.signal, `Decoding ${options.name}`);
  if (format === "GIF") return read_gif(bytes, options);
  if (format === "BMP") return read_bmp(bytes, options);
  if (format === "PNM") return read_pnm(bytes, options);
  return read_png(bytes, options);
}

/**
 * A PNG file for another decoder, and the orientation of the pixels that it will return.
 * @throws VitMsnError INVALID_IMAGE where this package's reader would refuse it.
 */
export async function take_png_orientation(bytes: Uint8Array, name: string): Promise<UnturnedFile> {
  const { orientation } = await read_png_file(bytes, name);
  return { bytes: without_metadata(bytes), orientation };
}
