/** How many numbers a pixel has: grey, grey and alpha, RGB, RGBA. */
export type Channels = 1 | 2 | 3 | 4;

/** Eight-bit pixels, row by row from the top left, channels interleaved. */
export interface Pixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  channels: Channels;
}

/**
 * The same image with another number of channels, as Pillow's convert: alpha is dropped without blending,
 * colour becomes grey by ITU-R 601-2 luma, missing alpha is opaque.
 */
export function convert_channels(source: Pixels, channels: Channels): Pixels {
  if (source.channels === channels) return source;
  const pixels = source.width * source.height;
  const data = new Uint8Array(pixels * channels);
  const has_colour = source.channels >= 3;
  const alpha_at = source.channels === 2 ? 1 : source.channels === 4 ? 3 : -1;
  for (let p = 0, from = 0, to = 0; p < pixels; p++, from += source.channels, to += channels) {
    const red = source.data[from] as number;
    const green = has_colour ? (source.data[from + 1] as number) : red;
    const blue = has_colour ? (source.data[from + 2] as number) : red;
    if (channels >= 3) {
      data[to] = red;
      data[to + 1] = green;
      data[to + 2] = blue;
    } else {
      data[to] = has_colour ? luma(red, green, blue) : red;
    }
    if (channels === 2 || channels === 4) {
      data[to + channels - 1] = alpha_at < 0 ? 255 : (source.data[from + alpha_at] as number);
    }
  }
  return { data, width: source.width, height: source.height, channels };
}

/** Pillow's mode L in its 16-bit fixed point. */
function luma(red: number, green: number, blue: number): number {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

/** a·b/255 rounded, as Pillow multiplies by alpha. */
export function multiply_255(a: number, b: number): number {
  const product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/** Whether every pixel of a four-channel image is opaque. */
export function is_opaque(data: Uint8Array | Uint8ClampedArray): boolean {
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return false;
  return true;
}

/** Undoes a multiplication of colors by alpha, in place. */
export function divide_by_alpha(data: Uint8Array | Uint8ClampedArray): void {
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3] as number;
    for (let c = at; c < at + 3; c++) {
      data[c] = alpha === 0 ? 0 : Math.min(255, Math.round(((data[c] as number) * 255) / alpha));
    }
  }
}
