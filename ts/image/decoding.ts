import type { PictureHeader } from "./header.ts";
import { convert_channels, is_opaque, type Pixels } from "./pixels.ts";

export interface DecodeOptions {
  /** For messages: the path or URL. */
  name: string;
  /** The most pixels to decode; default MAX_PIXELS. */
  max_pixels?: number;
  signal?: AbortSignal;
}

/** Gives a decoded picture the channels that its file has, since decoders widen (grey to RGB, all to RGBA). */
export function finish_decoding(decoded: Pixels, header: PictureHeader): Pixels {
  const is_plain = decoded.channels !== 4 || is_opaque(decoded.data);
  const from_pixels = decoded.channels === 2 ? 4 : decoded.channels === 1 ? 1 : is_plain ? 3 : 4;
  return convert_channels(decoded, header.channels ?? from_pixels);
}
