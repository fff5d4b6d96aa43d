import { Pacer } from "../../engine/pacer.ts";
import type { DecodeOptions } from "../decoding.ts";
import { invalid_image, truncated } from "../limits.ts";
import type { Pixels } from "../pixels.ts";
import { latin1 } from "../signatures.ts";

// Lossless WebP (RFC 9649, section 3). Pixels are numbers 0xAARRGGBB. Browsers lose the color of transparent pixels.

/** Symbols of green: its values, then lengths of copies, then (added to these) the entries of the color cache. */
const LENGTHS = 24;
const ALPHABETS = [256 + LENGTHS, 256, 256, 256, 40] as const;
/** The order in which the lengths of the code of code lengths are stored. */
const CODE_ORDER = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const MAX_CODE_LENGTH = 15;
/** Bits that a code's table resolves at once. */
const TABLE_BITS = 8;
/** The nearest pixels in the order of their numbers: 16 times the rows above, plus 8 less the columns to the left. */
const NEIGHBOURS =
  "18071719280627 29161a262a38053739151b363a252b4804474914 1c353b464a242c58454b343c035759131d565a232d444c555b333d" +
  "68026769121e666a222e545c434d656b323e78017779535d111f646c424e767a212f757b313f636d525e00747c414f1020626e30737d515f" +
  "40727e616f50717f6070";
const PIXELS_AT_ONCE = 2 ** 14;

/** Whether a WebP file's first image is lossless, and where. */
interface Stream {
  bytes: Uint8Array;
  /** Of the image on its canvas. */
  left: number;
  top: number;
}

/**
 * Decodes a WebP file whose first frame is lossless.
 *
 * @param header the canvas's size.
 * @returns undefined for a lossy one.
 * @throws VitMsnError INVALID_IMAGE for a truncated or damaged file; ABORTED.
 */
export async function read_lossless_webp(
  bytes: Uint8Array,
  canvas: { width: number; height: number },
  { name, signal }: DecodeOptions,
): Promise<Pixels | undefined> {
  const stream = find_stream(bytes, 12, bytes.length);
  if (stream === undefined) return undefined;
  const bits = new BitReader(stream.bytes, name);
  if (bits.read(8) !== 0x2f) throw bits.damaged("its signature is wrong");
  const [width, height] = [1 + bits.read(14), 1 + bits.read(14)];
  if (stream.left + width > canvas.width || stream.top + height > canvas.height)
    throw bits.damaged("its frame is larger than its canvas");
  bits.read(1); // Whether alpha is used, which is only a hint.
  if (bits.read(3) !== 0) throw bits.damaged("its version is unknown");
  const pacer = new Pacer(signal, `Decoding ${name}`);
  return place(await read_transformed(bits, width, height, pacer), width, height, stream, canvas);
}

function find_stream(bytes: Uint8Array, from: number, to: number): Stream | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = from; at + 8 <= to; ) {
    const type = latin1(bytes, at, 4);
    const size = view.getUint32(at + 4, true);
    const end = Math.min(to, at + 8 + size);
    if (type === "VP8 ") return undefined;
    if (type === "VP8L") return { bytes: bytes.subarray(at + 8, end), left: 0, top: 0 };
    if (type === "ANMF" && at + 24 <= end) {
      const frame = find_stream(bytes, at + 24, end);
      const offset = (place: number) =>
        2 * (view.getUint16(place, true) | ((bytes[place + 2] as number) << 16));
      return frame && { ...frame, left: offset(at + 8), top: offset(at + 11) };
    }
    at += 8 + size + (size % 2);
  }
  return undefined;
}

/** RGBA on a transparent canvas. */
function place(
  pixels: Uint32Array,
  width: number,
  height: number,
  { left, top }: Stream,
  canvas: { width: number; height: number },
): Pixels {
  const data = new Uint8Array(canvas.width * canvas.height * 4);
  const view = new DataView(data.buffer);
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0, to = ((top + y) * canvas.width + left) * 4; x < width; x++, to += 4) {
      const argb = pixels[from++] as number;
      view.setUint32(to, (argb << 8) | (argb >>> 24));
    }
  }
  return { data, width: canvas.width, height: canvas.height, channels: 4 };
}

/** Bits from the lowest of each byte on. */
class BitReader {
  readonly #bytes: Uint8Array;
  readonly #name: string;
  #at = 0;
  #bits = 0;
  #count = 0;

  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.#name = name;
  }

  damaged(what: string): Error {
    return invalid_image(`${this.#name} is a damaged WebP file: ${what}.`, this.#name);
  }

  /** Up to 16 bits, which stay to be read; beyond the end there are zeros. */
  peek(count: number): number {
    while (this.#count < count) {
      this.#bits |= (this.#bytes[this.#at++] ?? 0) << this.#count;
      this.#count += 8;
    }
    return this.#bits & ((1 << count) - 1);
  }

  skip(count: number): void {
    this.#bits >>>= count;
    this.#count -= count;
    // Bytes that were read ahead don't count.
    if (this.#at - (this.#count >> 3) > this.#bytes.length) throw truncated(this.#name, "WebP");
  }

  read(count: number): number {
    const value = this.peek(count);
    this.skip(count);
    return value;
  }
}

/** A canonical prefix code. */
class PrefixCode {
  /** By the next TABLE_BITS bits: 16 times the symbol plus the length; 0 for longer codes. */
  readonly #table = new Uint16Array(1 << TABLE_BITS);
  /** By length: how many codes there are. */
  readonly #counts = new Uint16Array(MAX_CODE_LENGTH + 1);
  /** The symbols in the order of their codes. */
  readonly #symbols: Uint16Array;
  /** The only symbol, whose code has no bits. */
  readonly #only: number | undefined;

  constructor(lengths: Uint8Array, bits: BitReader) {
    const used = [...lengths.keys()].filter((symbol) => lengths[symbol] !== 0);
    this.#symbols = Uint16Array.from(used).sort(
      (a, b) => (lengths[a] as number) - (lengths[b] as number) || a - b,
    );
    if (used.length === 0) throw bits.damaged("a code has no symbols");
    if (used.length === 1) {
      this.#only = used[0];
      return;
    }
    let [code, left, previous] = [0, 1, 0];
    for (const symbol of this.#symbols) {
      const length = lengths[symbol] as number;
      code <<= length - previous;
      left <<= length - previous;
      previous = length;
      this.#counts[length] = (this.#counts[length] as number) + 1;
      if (left === 0) break;
      this.#enter(code++, length, symbol);
      left--;
    }
    if (left !== 0) throw bits.damaged("a code is incomplete");
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    if (total !== used.length) throw bits.damaged("a code has too many symbols");
  }

  #enter(code: number, length: number, symbol: number): void {
    if (length > TABLE_BITS) return;
    let reversed = 0;
    for (let bit = 0; bit < length; bit++) reversed |= ((code >> bit) & 1) << (length - 1 - bit);
    for (let i = reversed; i < this.#table.length; i += 1 << length) this.#table[i] = symbol * 16 + length;
  }

  read(bits: BitReader): number {
    if (this.#only !== undefined) return this.#only;
    const next = bits.peek(MAX_CODE_LENGTH);
    const entry = this.#table[next & (this.#table.length - 1)] as number;
    if (entry !== 0) {
      bits.skip(entry & 15);
      return entry >> 4;
    }
    let [code, first, index] = [0, 0, 0];
    for (let length = 1; length <= MAX_CODE_LENGTH; length++) {
      code = (code << 1) | ((next >> (length - 1)) & 1);
      const count = this.#counts[length] as number;
      if (code - first < count) {
        bits.skip(length);
        return this.#symbols[index + code - first] as number;
      }
      index += count;
      first = (first + count) << 1;
    }
    throw bits.damaged("a code is unknown");
  }
}

function read_code(bits: BitReader, alphabet: number): PrefixCode {
  const lengths = new Uint8Array(alphabet);
  if (bits.read(1) === 1) {
    const has_two = bits.read(1) === 1;
    const symbols = [bits.read(bits.read(1) === 1 ? 8 : 1)];
    if (has_two) symbols.push(bits.read(8));
    for (const symbol of symbols) {
      if (symbol >= alphabet) throw bits.damaged("a symbol is unknown");
      lengths[symbol] = 1;
    }
    return new PrefixCode(lengths, bits);
  }
  const of_lengths = new Uint8Array(CODE_ORDER.length);
  const stored = 4 + bits.read(4);
  for (const symbol of CODE_ORDER.slice(0, stored)) of_lengths[symbol] = bits.read(3);
  read_lengths(bits, new PrefixCode(of_lengths, bits), lengths);
  return new PrefixCode(lengths, bits);
}

/** Lengths of codes: 0 to 15, and repetitions. */
function read_lengths(bits: BitReader, code: PrefixCode, lengths: Uint8Array): void {
  let left = bits.read(1) === 1 ? 2 + bits.read(2 + 2 * bits.read(3)) : lengths.length;
  if (left > lengths.length) throw bits.damaged("a code has too many lengths");
  let previous = 8;
  for (let at = 0; at < lengths.length && left > 0; left--) {
    const symbol = code.read(bits);
    if (symbol < 16) {
      lengths[at++] = symbol;
      if (symbol !== 0) previous = symbol;
      continue;
    }
    const count = symbol === 16 ? 3 + bits.read(2) : symbol === 17 ? 3 + bits.read(3) : 11 + bits.read(7);
    if (at + count > lengths.length) throw bits.damaged("a code has too many lengths");
    if (symbol === 16) lengths.fill(previous, at, at + count);
    at += count;
  }
}

/** The number that a symbol and the bits behind it stand for: a length or a distance. */
function read_number(bits: BitReader, symbol: number): number {
  if (symbol < 4) return symbol + 1;
  const extra = (symbol - 2) >> 1;
  return ((2 + (symbol & 1)) << extra) + bits.read(extra) + 1;
}

/** The five codes of pixels: green (with lengths and cache), red, blue, alpha and distances. */
type Codes = readonly [PrefixCode, PrefixCode, PrefixCode, PrefixCode, PrefixCode];

const neighbours = NEIGHBOURS.replace(/ /g, "")
  .match(/../g)
  ?.map((pair) => Number.parseInt(pair, 16)) as number[];

function distance_of(number: number, width: number): number {
  const neighbour = neighbours[number - 1];
  if (neighbour === undefined) return number - neighbours.length;
  return Math.max(1, (neighbour >> 4) * width + 8 - (neighbour & 15));
}

const blocks = (size: number, block_bits: number) => Math.ceil(size / (1 << block_bits));

/** Pixels before transforms are undone. @param is_main only the image itself has several groups of codes. */
async function read_pixels(
  bits: BitReader,
  width: number,
  height: number,
  pacer: Pacer,
  is_main: boolean,
): Promise<Uint32Array> {
  const cache_bits = bits.read(1) === 1 ? bits.read(4) : 0;
  if (cache_bits > 11) throw bits.damaged("its color cache is too large");
  const cache = new Uint32Array(cache_bits === 0 ? 0 : 1 << cache_bits);
  let groups: Uint32Array | undefined;
  let group_bits = 0;
  if (is_main && bits.read(1) === 1) {
    group_bits = 2 + bits.read(3);
    groups = await read_pixels(bits, blocks(width, group_bits), blocks(height, group_bits), pacer, false);
    for (const [i, argb] of groups.entries()) groups[i] = (argb >> 8) & 0xffff;
  }
  const count = 1 + (groups?.reduce((most, group) => Math.max(most, group), 0) ?? 0);
  const codes: Codes[] = [];
  for (let i = 0; i < count; i++) {
    codes.push(
      ALPHABETS.map((size, n) => read_code(bits, n === 0 ? size + cache.length : size)) as unknown as Codes,
    );
    await pacer.step();
  }
  const pixels = new Uint32Array(width * height);
  const groups_across = blocks(width, group_bits);
  let cached = 0;
  const fill_cache = (end: number) => {
    if (cache.length === 0) return;
    for (; cached < end; cached++) {
      const argb = pixels[cached] as number;
      cache[Math.imul(0x1e35a7bd, argb) >>> (32 - cache_bits)] = argb;
    }
  };
  for (let at = 0, pause = PIXELS_AT_ONCE; at < pixels.length; ) {
    if (at >= pause) {
      await pacer.step();
      pause = at + PIXELS_AT_ONCE;
    }
    const group = groups?.[((at / width) >>> group_bits) * groups_across + ((at % width) >> group_bits)] ?? 0;
    const [green, red, blue, alpha, distances] = codes[group] as Codes;
    const symbol = green.read(bits);
    if (symbol < 256) {
      const high = red.read(bits);
      const low = blue.read(bits);
      pixels[at++] = (alpha.read(bits) << 24) | (high << 16) | (symbol << 8) | low;
    } else if (symbol < 256 + LENGTHS) {
      const length = read_number(bits, symbol - 256);
      const distance = distance_of(read_number(bits, distances.read(bits)), width);
      if (distance > at || at + length > pixels.length) throw bits.damaged("it copies pixels from outside");
      for (const end = at + length; at < end; at++) pixels[at] = pixels[at - distance] as number;
    } else {
      fill_cache(at);
      pixels[at++] = cache[symbol - 256 - LENGTHS] as number;
    }
  }
  return pixels;
}

/** Undoes a transform of an image of the given height, whose width may grow. */
type Undo = (pixels: Uint32Array) => Uint32Array;

async function read_transformed(
  bits: BitReader,
  full_width: number,
  height: number,
  pacer: Pacer,
): Promise<Uint32Array> {
  const undo: Undo[] = [];
  const seen = new Set<number>();
  let width = full_width;
  while (bits.read(1) === 1) {
    const type = bits.read(2);
    if (seen.has(type)) throw bits.damaged("it has a transform twice");
    seen.add(type);
    const current = width;
    if (type === 2) undo.unshift(add_green);
    else if (type === 3) {
      const size = 1 + bits.read(8);
      const palette = await read_pixels(bits, size, 1, pacer, false);
      for (let i = 1; i < size; i++) palette[i] = add(palette[i] as number, palette[i - 1] as number);
      const packed = size <= 2 ? 3 : size <= 4 ? 2 : size <= 16 ? 1 : 0;
      width = blocks(width, packed);
      const packed_width = width;
      undo.unshift((pixels) => look_up(pixels, palette, packed, packed_width, current, height));
    } else {
      const block_bits = 2 + bits.read(3);
      const across = blocks(width, block_bits);
      const elements = await read_pixels(bits, across, blocks(height, block_bits), pacer, false);
      const element = (at: number) =>
        elements[((at / current) >>> block_bits) * across + ((at % current) >> block_bits)] as number;
      undo.unshift(
        type === 0 ? (pixels) => predict(pixels, current, element) : (pixels) => add_color(pixels, element),
      );
    }
  }
  let pixels = await read_pixels(bits, width, height, pacer, true);
  for (const step of undo) {
    pixels = step(pixels);
    await pacer.step();
  }
  return pixels;
}

function add_green(pixels: Uint32Array): Uint32Array {
  for (const [i, argb] of pixels.entries()) {
    const green = (argb >> 8) & 255;
    pixels[i] = (argb & 0xff00ff00) | (((argb & 0xff00ff) + (green << 16) + green) & 0xff00ff);
  }
  return pixels;
}

function look_up(
  pixels: Uint32Array,
  palette: Uint32Array,
  packed: number,
  packed_width: number,
  width: number,
  height: number,
): Uint32Array {
  const colors = new Uint32Array(width * height);
  const bits = 8 >> packed;
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const green = ((pixels[y * packed_width + (x >> packed)] as number) >> 8) & 255;
      const index = (green >> ((x & ((1 << packed) - 1)) * bits)) & ((1 << bits) - 1);
      colors[to++] = palette[index] ?? 0; // transparent black
    }
  }
  return colors;
}

const signed = (byte: number) => (byte << 24) >> 24;
const share = (factor: number, color: number) => (signed(factor) * signed(color)) >> 5;

/** Undoes the decorrelation of colors. */
function add_color(pixels: Uint32Array, element: (at: number) => number): Uint32Array {
  for (const [i, argb] of pixels.entries()) {
    const factors = element(i);
    const green = argb >> 8;
    const red = (argb >> 16) + share(factors, green);
    const blue = argb + share(factors >> 8, green) + share(factors >> 16, red);
    pixels[i] = (argb & 0xff00ff00) | ((red & 255) << 16) | (blue & 255);
  }
  return pixels;
}

/** Adds each channel modulo 256. */
function add(a: number, b: number): number {
  const high = (a & 0xff00ff00) + (b & 0xff00ff00);
  const low = (a & 0xff00ff) + (b & 0xff00ff);
  return ((high & 0xff00ff00) | (low & 0xff00ff)) >>> 0;
}

function mean(a: number, b: number): number {
  return (((a ^ b) & 0xfefefefe) >>> 1) + (a & b);
}

const BLACK = 0xff000000;

/** Adds the prediction by the pixels to the left and above. */
function predict(pixels: Uint32Array, width: number, element: (at: number) => number): Uint32Array {
  for (let at = 0; at < pixels.length; at++) {
    const left = pixels[at - 1] ?? BLACK;
    const above = pixels[at - width] ?? left;
    const prediction =
      at < width
        ? left
        : at % width === 0
          ? above
          : predicted(
              (element(at) >> 8) & 15,
              left,
              above,
              pixels[at - width - 1] as number,
              // At the end of a row, this is the first pixel of the same row.
              pixels[at - width + 1] as number,
            );
    pixels[at] = add(pixels[at] as number, prediction);
  }
  return pixels;
}

function predicted(mode: number, left: number, top: number, top_left: number, top_right: number): number {
  switch (mode) {
    case 1:
      return left;
    case 2:
      return top;
    case 3:
      return top_right;
    case 4:
      return top_left;
    case 5:
      return mean(mean(left, top_right), top);
    case 6:
      return mean(left, top_left);
    case 7:
      return mean(left, top);
    case 8:
      return mean(top_left, top);
    case 9:
      return mean(top, top_right);
    case 10:
      return mean(mean(left, top_left), mean(top, top_right));
    case 11:
      return nearer(left, top, top_left);
    case 12:
      return by_channel((shift) => byte(left, shift) + byte(top, shift) - byte(top_left, shift));
    case 13: {
      const middle = mean(left, top);
      return by_channel((shift) => {
        const value = byte(middle, shift);
        return value + Math.trunc((value - byte(top_left, shift)) / 2);
      });
    }
    default:
      return BLACK;
  }
}

const byte = (argb: number, shift: number) => (argb >>> shift) & 255;

function by_channel(value: (shift: number) => number): number {
  let argb = 0;
  for (let shift = 0; shift < 32; shift += 8) argb |= Math.max(0, Math.min(255, value(shift))) << shift;
  return argb;
}

/** Whichever is nearer to left + top - top_left. */
function nearer(left: number, top: number, top_left: number): number {
  let difference = 0;
  for (let shift = 0; shift < 32; shift += 8) {
    const corner = byte(top_left, shift);
    difference += Math.abs(byte(top, shift) - corner) - Math.abs(byte(left, shift) - corner);
  }
  return difference < 0 ? left : top;
}
