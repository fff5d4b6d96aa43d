import type { PictureHeader } from "./header.ts";
import { type Channels, convert_channels, is_opaque, type Pixels } from "./pixels.ts";

export interface DecodeOptions {
  /** For messages: the path or URL. */
  name: string;
  /** The most pixels to decode; default MAX_PIXELS. */
  max_pixels?: number;
  signal?: AbortSignal;
}

/** Gives a decoded picture the channels that its file has, since decoders widen (grey to RGB, all to RGBA). */
export function finish_decoding(decoded: Pixels, header: PictureHeader): Pixels {
  return convert_channels(decoded, header.channels ?? needed_channels(decoded));
}

/** What the pixels themselves need, for formats whose header doesn't tell. */
function needed_channels({ data, channels }: Pixels): Channels {
  if (channels === 4) return is_opaque(data) ? 3 : 4;
  return channels === 2 ? 4 : channels;
}
