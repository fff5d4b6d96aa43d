import type { DecodeOptions } from "../decoding.ts";
import { check_size, invalid_image, MAX_PIXELS, truncated } from "../limits.ts";
import type { Channels, Pixels } from "../pixels.ts";
import { latin1 } from "../signatures.ts";

/** The maximum length of a number, leading zeros included, as in Pillow. */
const MAX_DIGITS = 10;

/**
 * Decodes a portable bitmap, graymap or pixmap, P1 to P6 (https://netpbm.sourceforge.net/doc/pnm.html). Samples of any maximum
 * up to 65535 become 8 bits.
 * @throws VitMsnError INVALID_IMAGE.
 */
export function read_pnm(bytes: Uint8Array, { name, max_pixels = MAX_PIXELS }: DecodeOptions): Pixels {
  const kind = (bytes[1] as number) - 48;
  const damaged = (what: string) => invalid_image(`${name} is a damaged PNM file: ${what}.`, name);
  const numbers = new Numbers(bytes, 2, () => truncated(name, "PNM"), damaged);
  const [width, height] = [numbers.next(), numbers.next()];
  check_size(width, height, name, max_pixels);
  const is_bitmap = kind === 1 || kind === 4;
  const max = is_bitmap ? 1 : numbers.next();
  if (max < 1 || max > 65535) throw damaged(`its maximum value must be from 1 to 65535, got ${max}`);
  const channels: Channels = kind === 3 || kind === 6 ? 3 : 1;
  const row_samples = width * channels;
  const row_bytes = kind === 4 ? Math.ceil(width / 8) : row_samples * (max > 255 ? 2 : 1);
  // A digit a pixel, or numbers with a space between them. No memory is allocated for pixels that the file can't hold.
  const min_bytes =
    kind === 1 ? row_samples * height : kind < 4 ? 2 * row_samples * height - 1 : row_bytes * height;
  if (numbers.at + min_bytes > bytes.length) throw truncated(name, "PNM");
  const data = new Uint8Array(row_samples * height);
  const to_byte = scale(max, channels);
  if (kind === 1) for (let i = 0; i < data.length; i++) data[i] = 255 * (1 - numbers.bit());
  else if (kind < 4) {
    for (let i = 0; i < data.length; i++) {
      const value = numbers.next();
      if (value > max) throw damaged(`it has a value above its maximum, ${max}`);
      data[i] = to_byte(value);
    }
  } else if (kind === 4) read_bits(bytes, numbers.at, row_bytes, data, width);
  else read_samples(bytes, numbers.at, data, max > 255, to_byte);
  return { data, width, height, channels };
}

/**
 * To 8 bits. Grey of more than 8 bits is scaled to 16 bits, of which the high byte is used, as with other formats; color is scaled
 * directly, as in Pillow.
 */
function scale(max: number, channels: number): (value: number) => number {
  if (max === 255) return (value) => value;
  if (max > 255 && channels === 1) return (value) => round((value / max) * 65535) >> 8;
  return (value) => Math.min(255, round((value / max) * 255));
}

/** Halves to even, as Python does. */
function round(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

function read_samples(
  bytes: Uint8Array,
  start: number,
  data: Uint8Array,
  is_wide: boolean,
  to_byte: (value: number) => number,
): void {
  for (let i = 0, at = start; i < data.length; i++) {
    const high = is_wide ? (bytes[at++] as number) << 8 : 0;
    data[i] = to_byte(high | (bytes[at++] as number));
  }
}

/** One bit a pixel, 1 being black; rows begin with a byte. */
function read_bits(
  bytes: Uint8Array,
  start: number,
  row_bytes: number,
  data: Uint8Array,
  width: number,
): void {
  for (let i = 0; i < data.length; i++) {
    const [x, y] = [i % width, Math.floor(i / width)];
    const byte = bytes[start + y * row_bytes + (x >> 3)] as number;
    data[i] = (byte >> (7 - (x & 7))) & 1 ? 0 : 255;
  }
}

/** Reads decimal numbers, skipping spaces and comments. */
class Numbers {
  readonly #bytes: Uint8Array;
  readonly #truncated: () => Error;
  readonly #damaged: (what: string) => Error;
  /** The byte after the character that ended the last number. */
  at: number;

  constructor(bytes: Uint8Array, start: number, truncated: () => Error, damaged: (what: string) => Error) {
    this.#bytes = bytes;
    this.at = start;
    this.#truncated = truncated;
    this.#damaged = damaged;
  }

  next(): number {
    const start = this.#skip();
    while (this.at < this.#bytes.length && !is_space(this.#bytes[this.at])) this.at++;
    const text = latin1(this.#bytes, start, Math.min(this.at - start, MAX_DIGITS + 1));
    this.at++;
    if (!/^[0-9]{1,10}$/.test(text)) throw this.#damaged(`there is no number at byte ${start}`);
    return Number(text);
  }

  /** A digit 0 or 1, which needn't be followed by a space. */
  bit(): number {
    const digit = (this.#bytes[this.#skip()] as number) - 48;
    this.at++;
    if (digit !== 0 && digit !== 1) throw this.#damaged("a bitmap has the digits 0 and 1");
    return digit;
  }

  /** To the next character of a number. */
  #skip(): number {
    for (let in_comment = false; ; this.at++) {
      const byte = this.#bytes[this.at];
      if (byte === undefined) throw this.#truncated();
      if (in_comment) in_comment = byte !== 10 && byte !== 13;
      else if (byte === 35) in_comment = true;
      else if (!is_space(byte)) return this.at;
    }
  }
}

function is_space(byte: number | undefined): boolean {
  return byte === 32 || (byte !== undefined && byte >= 9 && byte <= 13);
}
