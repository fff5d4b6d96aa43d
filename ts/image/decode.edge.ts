import { VitMsnError } from "../errors.ts";
import { type DecodeOptions, decode_file } from "./decoding.ts";
import { OWN_FORMATS } from "./formats.ts";
import type { Pixels } from "./pixels.ts";

export { read_image_file } from "./decode.web.ts";

/**
 * Edge workers have neither a decoder nor a canvas, so only the formats that this package reads itself are decoded.
 * @throws VitMsnError INVALID_IMAGE; UNSUPPORTED for other formats.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name } = options;
  return decode_file(bytes, options, OWN_FORMATS, async (_, { format }) => {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} can't be decoded: this runtime has no decoder for ${format}. Set env.decode to a decoder such as ` +
        "@jsquash/jpeg, or pass pixels: new RawImage(data, width, height, channels).",
      { details: { file: name, found: format } },
    );
  });
}
