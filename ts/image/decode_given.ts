import { type DecodedImage, env } from "../env.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_a, is_error } from "../is_a.ts";
import { type DecodeOptions, decode_file } from "./decoding.ts";
import { invalid_image } from "./limits.ts";
import { turn_upright } from "./orientation.ts";
import type { Channels, Pixels } from "./pixels.ts";

/**
 * Decodes an image file by env.decode: its result is checked, and turned upright by the file's EXIF or XMP.
 *
 * @throws VitMsnError INVALID_IMAGE, or INVALID_ARGUMENT where env.decode returns no image.
 */
export async function decode_by_env(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, signal } = options;
  const decode = env.decode as NonNullable<typeof env.decode>;
  return decode_file(bytes, options, [], async (file, header) => {
    let decoded: DecodedImage;
    try {
      decoded = await decode(file.bytes, { ...header, name, signal });
    } catch (cause) {
      throw_if_aborted(signal, `Decoding ${name}`);
      if (cause instanceof VitMsnError) throw cause;
      const reason = is_error(cause) ? cause.message : String(cause);
      const message = `${name} can't be decoded by env.decode as ${header.format}: ${reason}.`;
      throw invalid_image(message, name, {}, cause);
    }
    return turn_upright(check_decoded(decoded, name), file.orientation);
  });
}

function check_decoded(decoded: DecodedImage, name: string): Pixels {
  const { data, width, height } = (decoded ?? {}) as Partial<DecodedImage>;
  if (!is_a(data, "Uint8Array", "Uint8ClampedArray")) throw not_pixels(name, typeof data);
  const channels = data.length / (Number(width) * Number(height));
  if (![1, 2, 3, 4].includes(channels)) {
    throw not_pixels(name, `${data.length} bytes for ${width}×${height} pixels`);
  }
  const own = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.length);
  return { data: own, width: width as number, height: height as number, channels: channels as Channels };
}

function not_pixels(name: string, got: string): VitMsnError {
  return new VitMsnError(
    "INVALID_ARGUMENT",
    "env.decode must return { data, width, height }, with 1 to 4 bytes per pixel in a Uint8Array or Uint8ClampedArray; for " +
      `${name} it returned ${got}.`,
    { details: { file: name } },
  );
}
