import { RawImage } from "../../image/raw_image.ts";
import { random_apply } from "./color_transforms.ts";
import type { ImageTransform } from "./transforms.ts";

/** Box blurs that make one Gaussian. */
const PASSES = 3;
/** The number of fractional bits of the fixed-point weights. */
const BITS = 24;
const ONE = 2 ** BITS;

/** Blurs with a probability, by a radius drawn from the range: MSN's GaussianBlur, with PIL's blur. */
export function random_gaussian_blur(
  probability: number,
  [min, max]: readonly [number, number],
): ImageTransform {
  return random_apply((image, random) => gaussian_blur(image, random.uniform(min, max)), probability);
}

/** The weights of a box blur: of the pixels within `radius`, and of the two at its ends. */
interface Box {
  radius: number;
  inner: number;
  outer: number;
}

/**
 * Pillow's ImageFilter.GaussianBlur, bit-identical: three box blurs with rounding to 8 bits after each, first
 * of rows, then of columns; edge pixels are repeated beyond the edge.
 * @param radius the standard deviation in pixels.
 */
export function gaussian_blur(image: RawImage, radius: number): RawImage {
  const { width, height, channels } = image;
  const box = box_of(radius);
  const data = new Uint8Array(image.data);
  if (box.radius > 0 || box.outer > 0) {
    const line = new Float64Array(Math.max(width, height) + 2 * (box.radius + 1));
    for (let c = 0; c < channels; c++) {
      for (let y = 0; y < height; y++) blur_line(data, y * width * channels + c, channels, width, box, line);
      for (let x = 0; x < width; x++) blur_line(data, x * channels + c, width * channels, height, box, line);
    }
  }
  return new RawImage(data, width, height, channels);
}

/**
 * Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (2011), as
 * Pillow computes it.
 */
function box_of(radius: number): Box {
  const f = Math.fround;
  const variance = f(f(f(radius) * f(radius)) / PASSES);
  const length = f(Math.sqrt(12 * variance + 1));
  const whole = f(Math.floor((length - 1) / 2));
  const above = f(f(f(2 * whole + 1) * f(f(whole * f(whole + 1)) - f(3 * variance))));
  const rest = f(above / f(6 * f(variance - f(f(whole + 1) * f(whole + 1)))));
  const extended = f(whole + rest);
  const inner_radius = Math.trunc(extended);
  const inner = Math.trunc(f(ONE / f(f(extended * 2) + 1)));
  return { radius: inner_radius, inner, outer: Math.trunc((ONE - (inner_radius * 2 + 1) * inner) / 2) };
}

/** All passes over one row or column: `length` values, beginning at `start`, `stride` apart. */
function blur_line(
  data: Uint8Array,
  start: number,
  stride: number,
  length: number,
  { radius, inner, outer }: Box,
  line: Float64Array,
): void {
  // Repeat the edge pixels as far as the box reaches.
  const pad = radius + 1;
  const first = pad;
  const end = pad + length;
  for (let pass = 0; pass < PASSES; pass++) {
    for (let i = 0; i < length; i++) line[first + i] = data[start + i * stride] as number;
    line.fill(line[first] as number, 0, first);
    line.fill(line[end - 1] as number, end, end + pad);
    let sum = 0;
    for (let i = 0; i < 2 * radius + 1; i++) sum += line[i] as number;
    for (let i = 0; i < length; i++) {
      // The values that leave and enter the box of the previous pixel.
      const [before, after] = [line[i] as number, line[i + 2 * pad] as number];
      sum += (line[i + 2 * radius + 1] as number) - before;
      data[start + i * stride] = Math.floor((sum * inner + (before + after) * outer + ONE / 2) / ONE);
    }
  }
}
