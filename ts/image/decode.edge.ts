import { VitMsnError } from "../errors.ts";
import { type DecodeOptions, decode_file } from "./decoding.ts";
import type { Pixels } from "./pixels.ts";

export { read_image_file } from "./decode.web.ts";

/**
 * Edge workers have neither a decoder nor a canvas: there are the formats that this package reads itself.
 * @throws VitMsnError INVALID_IMAGE; UNSUPPORTED for other formats, and what to do.
 */
export async function decode_image(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name } = options;
  return decode_file(bytes, options, ["PNG", "GIF", "BMP", "PNM"], async (_, { format }) => {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} can't be decoded: this runtime has no decoder for ${format}. Set env.decode, for example to that of ` +
        "@jsquash/jpeg, or give pixels: new RawImage(data, width, height, channels).",
      { details: { file: name, found: format } },
    );
  });
}
