import { VitMsnError } from "../../errors.ts";
import type { DecodeOptions } from "../decoding.ts";
import { check_size, MAX_PIXELS, truncated } from "../limits.ts";
import type { Channels, Pixels } from "../pixels.ts";

/** The size of OS/2's header, which has sides of two bytes and colors of three. */
const CORE_HEADER = 12;
const RLE8 = 1;
const RLE4 = 2;
const BIT_FIELDS = 3;
const ALPHA_BIT_FIELDS = 6;

interface Bmp {
  width: number;
  height: number;
  is_top_down: boolean;
  bits: number;
  compression: number;
  /** Four bytes each: blue, green, red. */
  palette: Uint8Array;
  /** The bits of red, green, blue and alpha in a pixel of 16 or more bits. */
  masks: readonly [number, number, number, number];
  /** Where the pixels begin. */
  data_at: number;
}

/**
 * Decodes a Windows or OS/2 bitmap (https://learn.microsoft.com/windows/win32/gdi/bitmap-storage) as Pillow does: 1 to 32 bits a
 * pixel, bit fields, RLE, top-down or bottom-up.
 *
 * @throws VitMsnError INVALID_IMAGE; UNSUPPORTED for other compressions, such as an embedded PNG or JPEG.
 */
export function read_bmp(bytes: Uint8Array, { name, max_pixels = MAX_PIXELS }: DecodeOptions): Pixels {
  try {
    const bmp = read_bmp_header(bytes, name);
    check_size(bmp.width, bmp.height, name, max_pixels);
    return bmp.bits <= 8 ? indexed(bytes, bmp) : direct(bytes, bmp);
  } catch (error) {
    if (error instanceof RangeError) throw truncated(name, "BMP");
    throw error;
  }
}

function read_bmp_header(bytes: Uint8Array, name: string): Bmp {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const header_size = view.getUint32(14, true);
  const is_core = header_size === CORE_HEADER;
  const signed_height = is_core ? view.getUint16(20, true) : view.getInt32(22, true);
  const bits = view.getUint16(is_core ? 24 : 28, true);
  const compression = is_core ? 0 : view.getUint32(30, true);
  const has_fields = compression === BIT_FIELDS || compression === ALPHA_BIT_FIELDS;
  const is_known = has_fields
    ? bits >= 16
    : compression === 0 || compression === (bits === 8 ? RLE8 : bits === 4 ? RLE4 : -1);
  if (![1, 2, 4, 8, 16, 24, 32].includes(bits) || !is_known) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `${name} is a BMP image with ${bits} bits per pixel and compression ${compression}, which isn't supported; convert it to PNG.`,
      { details: { file: name, bits, compression } },
    );
  }
  // The bit fields of a header of 40 bytes follow it.
  const field_count = header_size >= 56 || compression === ALPHA_BIT_FIELDS ? 4 : 3;
  const fields_size = has_fields && header_size === 40 ? 4 * field_count : 0;
  const color_size = is_core ? 3 : 4;
  const colors = bits > 8 ? 0 : (!is_core && view.getUint32(46, true)) || 2 ** bits;
  const palette_at = 14 + header_size + fields_size;
  const palette = new Uint8Array(256 * 4);
  for (let i = 0; i < Math.min(colors, 256); i++) {
    palette.set(bytes.subarray(palette_at + i * color_size, palette_at + i * color_size + 3), 4 * i);
  }
  const field = (i: number) => (i < field_count ? view.getUint32(54 + 4 * i, true) : 0);
  const fields: Bmp["masks"] = has_fields ? [field(0), field(1), field(2), field(3)] : [0, 0, 0, 0];
  return {
    width: is_core ? view.getUint16(18, true) : view.getInt32(18, true),
    height: Math.abs(signed_height),
    is_top_down: signed_height < 0,
    bits,
    compression,
    palette,
    masks: fields.some(Boolean)
      ? fields
      : bits === 16
        ? [0x7c00, 0x3e0, 0x1f, 0]
        : [0xff0000, 0xff00, 0xff, 0],
    data_at: view.getUint32(10, true) || palette_at + colors * color_size,
  };
}

/** The row of the image that the n-th stored row is. */
function row_of({ height, is_top_down }: Bmp, stored: number): number {
  return is_top_down ? stored : height - 1 - stored;
}

/** Rows are padded to four bytes. @throws RangeError where the file ends before the last one does. */
function stored_row(bytes: Uint8Array, { width, bits, height, data_at }: Bmp): (stored: number) => number {
  const row_bytes = Math.ceil((width * bits) / 32) * 4;
  if (data_at + row_bytes * (height - 1) + Math.ceil((width * bits) / 8) > bytes.length)
    throw new RangeError();
  return (stored) => data_at + stored * row_bytes;
}

function indexed(bytes: Uint8Array, bmp: Bmp): Pixels {
  const { width, height, palette, compression } = bmp;
  const indices = compression === 0 ? unpack_rows(bytes, bmp) : unpack_runs(bytes, bmp);
  const data = new Uint8Array(width * height * 3);
  for (let stored = 0; stored < height; stored++) {
    let to = row_of(bmp, stored) * width * 3;
    for (let x = 0; x < width; x++) {
      const color = 4 * (indices[stored * width + x] as number);
      for (let c = 2; c >= 0; c--) data[to++] = palette[color + c] as number;
    }
  }
  return { data, width, height, channels: 3 };
}

function unpack_rows(bytes: Uint8Array, bmp: Bmp): Uint8Array {
  const { width, height, bits } = bmp;
  const row_at = stored_row(bytes, bmp);
  const indices = new Uint8Array(width * height);
  const [in_byte, mask] = [8 / bits, 2 ** bits - 1];
  for (let stored = 0, to = 0; stored < height; stored++) {
    const row = row_at(stored);
    for (let x = 0; x < width; x++) {
      const byte = bytes[row + Math.floor(x / in_byte)] as number;
      indices[to++] = (byte >> (8 - bits * (1 + (x % in_byte)))) & mask;
    }
  }
  return indices;
}

/** RLE8 and RLE4: a count and the repeated value, or 0 and a command. Skipped pixels have the first color. */
function unpack_runs(bytes: Uint8Array, { width, height, compression, data_at }: Bmp): Uint8Array {
  const indices = new Uint8Array(width * height);
  const per_byte = compression === RLE4 ? 2 : 1;
  const pixel = (at: number, i: number) => {
    const byte = bytes[at + Math.floor(i / per_byte)] as number;
    return per_byte === 1 ? byte : i % 2 === 0 ? byte >> 4 : byte & 15;
  };
  let [x, y] = [0, 0];
  const put = (count: number, read: (i: number) => number) => {
    // Only what is visible: a small file may hold very many runs beyond a row's end.
    const visible = Math.min(count, width - x);
    for (let i = 0; i < visible; i++) indices[y * width + x + i] = read(i);
    x += count;
  };
  for (let at = data_at; y < height; ) {
    const [count, value] = [bytes[at], bytes[at + 1]];
    if (count === undefined || value === undefined) throw new RangeError();
    at += 2;
    if (count > 0) put(count, (i) => pixel(at - 1, i % per_byte));
    else if (value === 1) break;
    else if (value === 0) [x, y] = [0, y + 1];
    else if (value === 2) {
      x += bytes[at] ?? 0;
      y += bytes[at + 1] ?? 0;
      at += 2;
    } else {
      const size = Math.ceil(value / per_byte);
      if (at + size > bytes.length) throw new RangeError();
      put(value, (i) => pixel(at, i));
      at += size + (size % 2);
    }
  }
  return indices;
}

function direct(bytes: Uint8Array, bmp: Bmp): Pixels {
  const { width, height, bits, masks } = bmp;
  const row_at = stored_row(bytes, bmp);
  const channels: Channels = masks[3] === 0 ? 3 : 4;
  const scales = masks.map(scale_of);
  const data = new Uint8Array(width * height * channels);
  const bytes_each = bits / 8;
  for (let stored = 0; stored < height; stored++) {
    let to = row_of(bmp, stored) * width * channels;
    for (let x = 0, at = row_at(stored); x < width; x++, at += bytes_each) {
      let pixel = 0;
      for (let i = bytes_each - 1; i >= 0; i--) pixel = (pixel << 8) | (bytes[at + i] as number);
      for (let c = 0; c < channels; c++) {
        const { shift, max } = scales[c] as { shift: number; max: number };
        data[to++] = max === 0 ? 0 : Math.floor((((pixel & (masks[c] as number)) >>> shift) * 255) / max);
      }
    }
  }
  return { data, width, height, channels };
}

/** How a mask's bits become a number, and its maximum. */
function scale_of(mask: number): { shift: number; max: number } {
  const shift = mask === 0 ? 0 : 31 - Math.clz32(mask & -mask);
  return { shift, max: mask >>> shift };
}
