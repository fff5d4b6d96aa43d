import { type DecodedPicture, env } from "../env.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { type DecodeOptions, finish_decoding } from "./decoding.ts";
import { check_size, invalid_image, MAX_PIXELS, read_header } from "./header.ts";
import { take_any_orientation, turn_upright } from "./orientation.ts";
import type { Channels, Pixels } from "./pixels.ts";

/**
 * Decodes a picture file by env.decode: what it gives is turned upright by the file's EXIF orientation and checked.
 *
 * @throws VitMsnError INVALID_IMAGE, or INVALID_ARGUMENT where env.decode gives no picture.
 */
export async function decode_by_env(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS, signal } = options;
  throw_if_aborted(signal, `Decoding ${name}`);
  const header = read_header(bytes, name, max_pixels);
  const { bytes: unturned, orientation } = take_any_orientation(bytes, header.format);
  let decoded: DecodedPicture;
  try {
    decoded = await (env.decode as NonNullable<typeof env.decode>)(unturned, { ...header, name, signal });
  } catch (cause) {
    throw_if_aborted(signal, `Decoding ${name}`);
    if (cause instanceof VitMsnError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw invalid_image(
      `${name} can't be decoded by env.decode as ${header.format}: ${reason}.`,
      name,
      {},
      cause,
    );
  }
  throw_if_aborted(signal, `Decoding ${name}`);
  const upright = turn_upright(check_decoded(decoded, name), orientation);
  check_size(upright.width, upright.height, name, max_pixels);
  return finish_decoding(upright, header);
}

function check_decoded(decoded: DecodedPicture, name: string): Pixels {
  const { data, width, height } = (decoded ?? {}) as Partial<DecodedPicture>;
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray))
    throw bad_picture(name, typeof data);
  const channels = data.length / (Number(width) * Number(height));
  if (![1, 2, 3, 4].includes(channels)) {
    throw bad_picture(name, `${data.length} bytes for ${width}×${height} pixels`);
  }
  const own = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.length);
  return { data: own, width: width as number, height: height as number, channels: channels as Channels };
}

function bad_picture(name: string, got: string): VitMsnError {
  return new VitMsnError(
    "INVALID_ARGUMENT",
    "env.decode must give { data, width, height }, with 1 to 4 bytes a pixel in a Uint8Array or Uint8ClampedArray; for " +
      `${name} it gave ${got}.`,
    { details: { file: name } },
  );
}
