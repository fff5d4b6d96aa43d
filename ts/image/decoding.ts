import { throw_if_aborted, until_aborted } from "../errors.ts";
import { on_demand } from "../on_demand.ts";
import type { ImageFormat } from "./formats.ts";
import { type ImageHeader, read_header } from "./header.ts";
import { check_size, MAX_PIXELS } from "./limits.ts";
import { take_orientation, type UnturnedFile } from "./orientation.ts";
import { type Channels, convert_channels, divide_by_alpha, is_opaque, type Pixels } from "./pixels.ts";
import type { ReadOptions } from "./raw_image.ts";

export interface DecodeOptions {
  /** For messages: the path or URL. */
  name: string;
  /** The most pixels to decode; default MAX_PIXELS. */
  max_pixels?: number;
  signal?: AbortSignal;
  admit?: ReadOptions["admit"];
}

/**
 * Decodes an image file: the steps that all decoders share.
 *
 * @param own the formats that are decoded by this package's own readers.
 * @param decode another decoder, which returns the pixels upright. An abort doesn't wait for it.
 * @throws VitMsnError INVALID_IMAGE, UNSUPPORTED, ABORTED.
 */
export async function decode_file(
  bytes: Uint8Array,
  options: DecodeOptions,
  own: readonly ImageFormat[],
  decode: (file: UnturnedFile, header: ImageHeader) => Promise<Pixels>,
): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  throw_if_aborted(signal, `Decoding ${name}`);
  const header = await read_header(bytes, name, max_pixels);
  const { format } = header;
  await options.admit?.(header);
  if (own.includes(format)) return finish_decoding(await read_own(bytes, format, options), header);
  const file = await prepare(bytes, header, name);
  const decoded = await until_aborted(decode(file, header), signal, `Decoding ${name}`);
  check_size(decoded.width, decoded.height, name, max_pixels);
  return finish_decoding(decoded, header);
}

/** A file for another decoder, without the metadata that decoders of different runtimes apply differently. */
async function prepare(bytes: Uint8Array, header: ImageHeader, name: string): Promise<UnturnedFile> {
  if (header.format === "PNG") return (await readers()).take_png_orientation(bytes, name);
  if (header.format !== "AVIF") return take_orientation(bytes, header.format);
  const plain = bytes.slice();
  // A still image, by the major brand: that of animations is "avis".
  plain.set([0x61, 0x76, 0x69, 0x66], 8);
  if (header.premultiplied_at !== undefined)
    plain.fill(0x58, header.premultiplied_at, header.premultiplied_at + 4);
  return { bytes: plain, orientation: 1 };
}

/** By this package's own readers, which give the same pixels in every runtime: OWN_FORMATS. */
export async function read_own(
  bytes: Uint8Array,
  format: ImageFormat,
  options: DecodeOptions,
): Promise<Pixels> {
  return (await readers()).read_image(bytes, format, options);
}

function readers() {
  return on_demand("readers of image files", () => import("./readers/readers.ts"));
}

/** Gives a decoded image the channels that its file has, since decoders add channels (grey to RGB, all to RGBA). */
function finish_decoding(decoded: Pixels, header: ImageHeader): Pixels {
  if (header.premultiplied_at !== undefined && decoded.channels === 4) divide_by_alpha(decoded.data);

  return convert_channels(decoded, header.channels ?? needed_channels(decoded));
}

/** The channels that the pixels need, for formats whose header doesn't state them. */
function needed_channels({ data, channels }: Pixels): Channels {
  if (channels === 4) return is_opaque(data) ? 3 : 4;
  return channels === 2 ? 4 : channels;
}
