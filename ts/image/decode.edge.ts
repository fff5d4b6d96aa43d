import { VitMsnError } from "../errors.ts";
import type { DecodeOptions } from "./decoding.ts";
import type { Pixels } from "./pixels.ts";

export { read_picture_file } from "./decode.web.ts";

/** Edge workers have neither a decoder nor a canvas. @throws VitMsnError UNSUPPORTED, and what to do. */
export async function decode_image(_bytes: Uint8Array, { name }: DecodeOptions): Promise<Pixels> {
  throw new VitMsnError(
    "UNSUPPORTED",
    `${name} can't be decoded: this runtime has no decoder of pictures. Set env.decode, as to the decoders of @jsquash/jpeg ` +
      "and @jsquash/png, or give pixels: new RawImage(data, width, height, channels).",
    { details: { file: name } },
  );
}
