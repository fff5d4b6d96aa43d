import { VitMsnError } from "../errors.ts";
import { type Channels, multiply_255, type Pixels } from "./pixels.ts";

/** Pillow's codes of its resampling filters, as `resample` in preprocessor_config.json. */
export const RESAMPLE = { nearest: 0, lanczos: 1, bilinear: 2, bicubic: 3, box: 4, hamming: 5 } as const;
export type ResampleName = keyof typeof RESAMPLE;
export type ResampleCode = (typeof RESAMPLE)[ResampleName];

/** The code of a filter given by name or code; undefined for an unknown one. */
export function resample_code(resample: unknown): ResampleCode | undefined {
  if (typeof resample === "string" && Object.hasOwn(RESAMPLE, resample.toLowerCase())) {
    return RESAMPLE[resample.toLowerCase() as ResampleName];
  }
  return Object.values(RESAMPLE).find((code) => code === resample);
}

export interface Filter {
  /** Half the width, in source pixels at scale 1. */
  support: number;
  weight(x: number): number;
}

const sinc = (x: number) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** Catmull-Rom's family with a = -0.5, as Pillow's BICUBIC. */
function cubic(x: number): number {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

export const FILTERS: Record<Exclude<ResampleCode, 0>, Filter> = {
  1: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  3: { support: 2, weight: cubic },
  4: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  5: {
    support: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x))),
  },
};

/**
 * Resizes as Image.resize of Pillow 13 does, bit for bit: the filter's support grows with the downscale factor
 * (antialiasing), weights are 22-bit fixed point, and pixels are rounded to 8 bits after each of the two passes.
 * Images with alpha are filtered premultiplied, so that the colour of transparent pixels doesn't bleed.
 *
 * @param width,height the new size in pixels, positive integers.
 */
export function resize_pixels(source: Pixels, width: number, height: number, resample: ResampleCode): Pixels {
  const steps = resize_steps(source, width, height, resample);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/** resize_pixels with a pause after every few rows, so that a large image needn't block its thread. */
export function* resize_steps(
  source: Pixels,
  width: number,
  height: number,
  resample: ResampleCode,
): Steps<Pixels> {
  if (source.width === width && source.height === height) return source;
  if (resample === RESAMPLE.nearest) return resize_nearest(source, width, height);
  const filter = FILTERS[resample];
  const has_alpha = source.channels === 2 || source.channels === 4;
  const resized = yield* resample_both_ways(has_alpha ? premultiply(source) : source, width, height, filter);
  return has_alpha ? unpremultiply(resized) : resized;
}

export type Steps<T> = Generator<undefined, T, undefined>;

/** Bytes of the source between pauses: about 2 ms. */
const BYTES_PER_STEP = 1 << 20;

/**
 * Whether the number of rows changes before their width. Since each pass rounds, their order is visible: Pillow 13 takes
 * the cheaper one first, earlier ones the width.
 */
export function resamples_rows_first(
  source: { width: number; height: number },
  width: number,
  height: number,
): boolean {
  const removed_columns = source.width - width;
  const removed_rows = source.height - height;
  return removed_rows > 0 && 2 * removed_columns < removed_rows;
}

function* resample_both_ways(source: Pixels, width: number, height: number, filter: Filter): Steps<Pixels> {
  if (resamples_rows_first(source, width, height)) {
    return yield* resample_rows(yield* resample_columns(source, height, filter), width, filter);
  }
  return yield* resample_columns(yield* resample_rows(source, width, filter), height, filter);
}

export function resize_nearest(
  source: Pixels,
  width: number,
  height: number,
  positions_of = nearest_positions,
): Pixels {
  const { channels } = source;
  const columns = positions_of(source.width, width);
  const rows = positions_of(source.height, height);
  const data = allocate(width, height, channels);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * source.width + column) * channels;
      for (let c = 0; c < channels; c++) data[to++] = source.data[from + c] as number;
    }
  }
  return { data, width, height, channels };
}

/** The source pixel under each target pixel's centre. The position is summed up, since Pillow's rounding of the sum is visible. */
export function nearest_positions(source_size: number, size: number): Int32Array {
  const step = source_size / size;
  const positions = allocate_int32(size);
  let position = step * 0.5;
  for (let i = 0; i < size; i++, position += step) {
    positions[i] = Math.min(Math.floor(position), source_size - 1);
  }
  return positions;
}

export const PRECISION_BITS = 32 - 8 - 2;

/** Which source pixels make each target pixel, and with what weights in fixed point. */
export interface Coefficients {
  /** Fractional bits of the weights. */
  bits: number;
  /** Weights reserved for each target pixel. */
  stride: number;
  first: Int32Array;
  count: Int32Array;
  weights: Int32Array;
}

export function coefficients(
  source_size: number,
  size: number,
  filter: Filter,
  bits = PRECISION_BITS,
): Coefficients {
  const scale = source_size / size;
  const filter_scale = Math.max(scale, 1);
  const support = filter.support * filter_scale;
  const stride = Math.ceil(support) * 2 + 1;
  const first = allocate_int32(size);
  const count = allocate_int32(size);
  const weights = allocate_int32(size * stride);
  const exact = new Float64Array(stride);
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const taps = Math.min(Math.trunc(centre + support + 0.5), source_size) - start;
    let sum = 0;
    for (let k = 0; k < taps; k++) {
      const weight = filter.weight((k + start - centre + 0.5) * (1 / filter_scale));
      exact[k] = weight;
      sum += weight;
    }
    first[i] = start;
    count[i] = taps;
    for (let k = 0; k < taps; k++) {
      const weight = (exact[k] as number) / (sum || 1);
      weights[i * stride + k] = Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << bits));
    }
  }
  return { bits, stride, first, count, weights };
}

function clip_8(sum: number, bits: number): number {
  return Math.min(Math.max(sum >> bits, 0), 255);
}

export function* resample_rows(
  source: Pixels,
  width: number,
  filter: Filter,
  plan_of = coefficients,
): Steps<Pixels> {
  if (source.width === width) return source;
  const { channels, height } = source;
  const plan = plan_of(source.width, width, filter);
  const data = allocate(width, height, channels);
  const resample_row = channels === 3 ? resample_rgb_row : resample_any_row;
  const row_length = source.width * channels;
  for (let y = 0, read = 0; y < height; y++) {
    const row = source.data.subarray(y * row_length, (y + 1) * row_length);
    resample_row(row, data.subarray(y * width * channels, (y + 1) * width * channels), channels, plan);
    read += row_length;
    if (read > BYTES_PER_STEP) {
      read = 0;
      yield;
    }
  }
  return { data, width, height, channels };
}

type Bytes = Uint8Array | Uint8ClampedArray;

/** The common case: three sums in one pass over the weights take two thirds of the time. */
function resample_rgb_row(input: Bytes, output: Bytes, _channels: Channels, plan: Coefficients): void {
  const { bits, stride, first, count, weights } = plan;
  const half = 1 << (bits - 1);
  for (let x = 0, to = 0; x < first.length; x++, to += 3) {
    const begin = x * stride;
    const end = begin + (count[x] as number);
    let [red, green, blue] = [half, half, half];
    for (let k = begin, at = (first[x] as number) * 3; k < end; k++, at += 3) {
      const weight = weights[k] as number;
      red = (red + Math.imul(input[at] as number, weight)) | 0;
      green = (green + Math.imul(input[at + 1] as number, weight)) | 0;
      blue = (blue + Math.imul(input[at + 2] as number, weight)) | 0;
    }
    output[to] = clip_8(red, bits);
    output[to + 1] = clip_8(green, bits);
    output[to + 2] = clip_8(blue, bits);
  }
}

function resample_any_row(input: Bytes, output: Bytes, channels: Channels, plan: Coefficients): void {
  const { bits, stride, first, count, weights } = plan;
  for (let x = 0, to = 0; x < first.length; x++) {
    const begin = x * stride;
    const end = begin + (count[x] as number);
    for (let c = 0; c < channels; c++) {
      let sum = 1 << (bits - 1);
      for (let k = begin, at = (first[x] as number) * channels + c; k < end; k++, at += channels) {
        sum = (sum + Math.imul(input[at] as number, weights[k] as number)) | 0;
      }
      output[to++] = clip_8(sum, bits);
    }
  }
}

export function* resample_columns(
  source: Pixels,
  height: number,
  filter: Filter,
  plan_of = coefficients,
): Steps<Pixels> {
  if (source.height === height) return source;
  const { channels, width, data: input } = source;
  const { bits, stride, first, count, weights } = plan_of(source.height, height, filter);
  const row_length = width * channels;
  const data = allocate(width, height, channels);
  const sums = new Int32Array(row_length);
  for (let y = 0, read = 0; y < height; y++) {
    sums.fill(1 << (bits - 1));
    for (let k = 0; k < (count[y] as number); k++) {
      const weight = weights[y * stride + k] as number;
      add_row(sums, input, ((first[y] as number) + k) * row_length, weight);
      read += row_length;
      if (read > BYTES_PER_STEP) {
        read = 0;
        yield;
      }
    }
    const to = y * row_length;
    for (let i = 0; i < row_length; i++) data[to + i] = clip_8(sums[i] as number, bits);
  }
  return { data, width, height, channels };
}

/** A separate function, since loops inside generators are slow. */
function add_row(sums: Int32Array, input: Bytes, row: number, weight: number): void {
  for (let i = 0; i < sums.length; i++) {
    sums[i] = (sums[i] as number) + Math.imul(input[row + i] as number, weight);
  }
}

function premultiply(source: Pixels): Pixels {
  const { channels } = source;
  const data = new Uint8Array(source.data);
  for (let i = 0; i < data.length; i += channels) {
    const alpha = data[i + channels - 1] as number;
    for (let c = 0; c < channels - 1; c++) data[i + c] = multiply_255(data[i + c] as number, alpha);
  }
  return { ...source, data };
}

/** Changes `image` in place: a copy that this module made. */
function unpremultiply(image: Pixels): Pixels {
  const { channels, data } = image;
  for (let i = 0; i < data.length; i += channels) {
    const alpha = data[i + channels - 1] as number;
    if (alpha === 0 || alpha === 255) continue;
    for (let c = 0; c < channels - 1; c++) {
      data[i + c] = Math.min(255, Math.trunc((255 * (data[i + c] as number)) / alpha));
    }
  }
  return image;
}

/** Zeros. @throws VitMsnError OUT_OF_MEMORY. */
export function allocate(width: number, height: number, channels: Channels): Uint8Array {
  try {
    return new Uint8Array(width * height * channels);
  } catch (cause) {
    throw new VitMsnError(
      "OUT_OF_MEMORY",
      `An image of ${width}×${height} pixels doesn't fit in memory; ask for a smaller size.`,
      { cause, details: { width, height } },
    );
  }
}

export function allocate_int32(length: number): Int32Array {
  try {
    return new Int32Array(length);
  } catch (cause) {
    throw new VitMsnError("OUT_OF_MEMORY", "Resizing this image needs more memory than there is.", {
      cause,
    });
  }
}
