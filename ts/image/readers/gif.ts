import { Pacer } from "../../engine/pacer.ts";
import type { DecodeOptions } from "../decoding.ts";
import { check_size, invalid_image, MAX_PIXELS, truncated } from "../limits.ts";
import type { Pixels } from "../pixels.ts";

const EXTENSION = 0x21;
const GRAPHIC_CONTROL = 0xf9;
const IMAGE = 0x2c;
const TRAILER = 0x3b;
const MAX_CODES = 4096;
/** Codes to decode before the event loop may run other tasks. */
const CODES_AT_ONCE = 2 ** 14;
/** Where each pass of an interlaced image begins, and how far its rows are apart. */
const PASSES = [
  [0, 8],
  [4, 8],
  [2, 4],
  [1, 2],
] as const;

/** The first frame as it is stored. */
interface Frame {
  left: number;
  top: number;
  width: number;
  height: number;
  is_interlaced: boolean;
  /** Colors of three bytes each; undefined where there are none and the indices are grey values. */
  palette: Uint8Array | undefined;
  transparent: number | undefined;
  /** Where its data begin: the size of a code, then blocks. */
  data_at: number;
}

/**
 * Decodes the first frame of a GIF file (https://www.w3.org/Graphics/GIF/spec-gif89a.txt) as Pillow does: the rest of the canvas
 * is transparent, or has the palette's first color; a frame that is larger than the canvas enlarges it. Browsers and libvips
 * do otherwise. Decoding stops when the frame is full, however much data follow.
 *
 * @throws VitMsnError INVALID_IMAGE where the file ends before its first frame does, is damaged or too large; ABORTED.
 */
export async function read_gif(bytes: Uint8Array, options: DecodeOptions): Promise<Pixels> {
  const { name, max_pixels = MAX_PIXELS } = options;
  if (bytes.length < 13) throw truncated(name, "GIF");
  const frame = read_frame(bytes, name);
  const width = Math.max(uint16(bytes, 6), frame.left + frame.width);
  const height = Math.max(uint16(bytes, 8), frame.top + frame.height);
  check_size(width, height, name, max_pixels);
  const pixels = await unpack(bytes, frame, options);
  return colored(on_canvas(pixels, frame, width, height), frame, width, height);
}

function uint16(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
}

function read_frame(bytes: Uint8Array, name: string): Frame {
  const global = color_table(bytes, 10, 13);
  let transparent: number | undefined;
  for (let at = global.end; at < bytes.length && bytes[at] !== TRAILER; ) {
    if (bytes[at] === EXTENSION) {
      if (bytes[at + 1] === GRAPHIC_CONTROL && (bytes[at + 3] as number) & 1) transparent = bytes[at + 6];
      at = end_of_blocks(bytes, at + 2);
    } else if (bytes[at] === IMAGE && at + 11 <= bytes.length) {
      const local = color_table(bytes, at + 9, at + 10);
      return {
        left: uint16(bytes, at + 1),
        top: uint16(bytes, at + 3),
        width: uint16(bytes, at + 5),
        height: uint16(bytes, at + 7),
        is_interlaced: ((bytes[at + 9] as number) & 0x40) !== 0,
        palette: local.colors ?? global.colors,
        transparent,
        data_at: local.end,
      };
    } else at++; // an unknown byte
  }
  throw truncated(name, "GIF");
}

/** The colors that the flags at `flags_at` announce. */
function color_table(bytes: Uint8Array, flags_at: number, at: number): { colors?: Uint8Array; end: number } {
  const flags = bytes[flags_at] as number;
  if ((flags & 0x80) === 0) return { end: at };
  const end = at + 3 * 2 ** ((flags & 7) + 1);
  return { colors: bytes.subarray(at, end), end };
}

/** The end of blocks that each begin with their length; the last has length 0. */
function end_of_blocks(bytes: Uint8Array, start: number): number {
  let at = start;
  while (bytes[at]) at += 1 + (bytes[at] as number);
  return at + 1;
}

/** The frame's indices, by LZW. Strings are read where the output has them first, so that no table of strings is needed. */
async function unpack(bytes: Uint8Array, frame: Frame, { name, signal }: DecodeOptions): Promise<Uint8Array> {
  const pixels = new Uint8Array(frame.width * frame.height);
  const literal_bits = bytes[frame.data_at] ?? 0;
  const damaged = () =>
    invalid_image(`${name} is a damaged GIF file: its pixels can't be decompressed.`, name);
  if (literal_bits < 1 || literal_bits > 11) throw damaged();
  const clear = 2 ** literal_bits;
  const starts = new Uint32Array(MAX_CODES);
  const lengths = new Uint32Array(MAX_CODES);
  const pacer = new Pacer(signal, `Decoding ${name}`);
  const codes = new CodeReader(bytes, frame.data_at + 1);
  let [next, bits, last_length] = [clear + 2, literal_bits + 1, 0];
  for (let at = 0, count = 1; at < pixels.length; count++) {
    if (count % CODES_AT_ONCE === 0) await pacer.step();
    const code = codes.read(bits);
    if (code === undefined || code === clear + 1) throw truncated(name, "GIF");
    if (code === clear) {
      [next, bits, last_length] = [clear + 2, literal_bits + 1, 0];
      continue;
    }
    const last = at - last_length;
    // The next new code stands for the last string and the first pixel of this one.
    if (last_length > 0 && next < MAX_CODES) {
      starts[next] = last;
      lengths[next] = last_length + 1;
      next++;
    }
    if (code < clear) {
      pixels[at++] = code;
      last_length = 1;
    } else {
      if (code >= next) throw damaged();
      last_length = Math.min(lengths[code] as number, pixels.length - at);
      for (let from = starts[code] as number, end = at + last_length; at < end; )
        pixels[at++] = pixels[from++] as number;
    }
    if (next === 2 ** bits && bits < 12) bits++;
  }
  return pixels;
}

/** Reads codes of a given number of bits from blocks. */
class CodeReader {
  readonly #bytes: Uint8Array;
  #at: number;
  #block_end: number;
  #pending = 0;
  #pending_bits = 0;

  constructor(bytes: Uint8Array, start: number) {
    this.#bytes = bytes;
    this.#at = start;
    this.#block_end = start;
  }

  /** undefined at the end of the data or the file. */
  read(bits: number): number | undefined {
    while (this.#pending_bits < bits) {
      if (this.#at === this.#block_end) {
        const length = this.#bytes[this.#at++];
        if (!length) return undefined;
        this.#block_end = this.#at + length;
      }
      const byte = this.#bytes[this.#at++];
      if (byte === undefined) return undefined;
      this.#pending |= byte << this.#pending_bits;
      this.#pending_bits += 8;
    }
    const code = this.#pending & (2 ** bits - 1);
    this.#pending >>= bits;
    this.#pending_bits -= bits;
    return code;
  }
}

function on_canvas(pixels: Uint8Array, frame: Frame, width: number, height: number): Uint8Array {
  const canvas = new Uint8Array(width * height).fill(frame.transparent ?? 0);
  const rows = Array.from({ length: frame.height }, (_, i) => i);
  const order = frame.is_interlaced
    ? PASSES.flatMap(([first, step]) => rows.filter((y) => y >= first && (y - first) % step === 0))
    : rows;
  for (const [stored, y] of order.entries()) {
    const row = pixels.subarray(stored * frame.width, (stored + 1) * frame.width);
    canvas.set(row, (frame.top + y) * width + frame.left);
  }
  return canvas;
}

function colored(
  indices: Uint8Array,
  { palette, transparent }: Frame,
  width: number,
  height: number,
): Pixels {
  const channels = transparent !== undefined && indices.includes(transparent) ? 4 : 3;
  const data = new Uint8Array(indices.length * channels);
  for (let i = 0, to = 0; i < indices.length; i++, to += channels) {
    const index = indices[i] as number;
    for (let c = 0; c < 3; c++) data[to + c] = palette === undefined ? index : (palette[3 * index + c] ?? 0);
    if (channels === 4) data[to + 3] = index === transparent ? 0 : 255;
  }
  return { data, width, height, channels };
}
