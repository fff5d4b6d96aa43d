import { RawImage } from "../../image/raw_image.ts";
import { check_options } from "../../options.ts";
import { JITTER_RULES } from "../option_rules.ts";
import { permutation, type Random } from "../random.ts";
import type { ImageTransform } from "./transforms.ts";

/** The strength of color_jitter, with the semantics of torchvision's ColorJitter. */
export interface ColorJitterOptions {
  /** Factors from 1 − x (at least 0) to 1 + x; default 0. */
  brightness?: number;
  contrast?: number;
  saturation?: number;
  /** Hue shifts from −x to x of the colour circle, up to 0.5; default 0. */
  hue?: number;
}

type Bytes = RawImage["data"];

/** Applies a transform with a probability: torchvision's RandomApply. */
export function random_apply(transform: ImageTransform, probability: number): ImageTransform {
  return (image, random) => (random.uniform() < probability ? transform(image, random) : image);
}

/**
 * Brightness, contrast, saturation and hue changed at random, in random order: torchvision's ColorJitter on
 * PIL images, bit-identical for the same factors. Grey images have neither saturation nor hue. Images with
 * alpha aren't supported.
 */
export function color_jitter(options: ColorJitterOptions): ImageTransform {
  check_options("color_jitter", options, JITTER_RULES);
  const { brightness = 0, contrast = 0, saturation = 0, hue = 0 } = options;
  const factor = (random: Random, by: number) => random.uniform(Math.max(0, 1 - by), 1 + by);
  return (image, random) => {
    const order = permutation(4, random);
    const [bright, contrasted, saturated] = [brightness, contrast, saturation].map((by) =>
      factor(random, by),
    );
    const shift = random.uniform(-hue, hue);
    const changes: readonly [number, (image: RawImage) => RawImage][] = [
      [brightness, (image) => adjust_brightness(image, bright as number)],
      [contrast, (image) => adjust_contrast(image, contrasted as number)],
      [saturation, (image) => adjust_saturation(image, saturated as number)],
      [hue, (image) => adjust_hue(image, shift)],
    ];
    return order.reduce((changed, i) => {
      const [by, change] = changes[i] as (typeof changes)[number];
      return by === 0 ? changed : change(changed);
    }, image);
  };
}

/** Converts to grey with a probability, in the same number of channels: torchvision's RandomGrayscale. */
export function random_grayscale(probability: number): ImageTransform {
  return random_apply((image) => image.grayscale().convert(image.channels), probability);
}

/** Blends with black: PIL's ImageEnhance.Brightness. */
export function adjust_brightness(image: RawImage, factor: number): RawImage {
  return by_table(image, blend_table(0, factor));
}

/** Blends with the image's mean grey: PIL's ImageEnhance.Contrast. */
export function adjust_contrast(image: RawImage, factor: number): RawImage {
  const grey = image.grayscale().data;
  let sum = 0;
  for (let i = 0; i < grey.length; i++) sum += grey[i] as number;
  return by_table(image, blend_table(Math.floor(sum / grey.length + 0.5), factor));
}

/** Blends with the image in grey: PIL's ImageEnhance.Color. */
export function adjust_saturation(image: RawImage, factor: number): RawImage {
  if (image.channels !== 3) return image;
  const grey = image.grayscale().data;
  const data = new Uint8Array(image.data.length);
  const alpha = Math.fround(factor);
  for (let i = 0; i < data.length; i++) {
    data[i] = blend(grey[(i / 3) | 0] as number, image.data[i] as number, alpha);
  }
  return with_data(image, data);
}

/** Shifts the hue by a share of the colour circle: torchvision's adjust_hue on PIL's 8-bit HSV. */
export function adjust_hue(image: RawImage, shift: number): RawImage {
  if (image.channels !== 3) return image;
  const by = Math.trunc(shift * 255) & 255;
  const data = new Uint8Array(image.data.length);
  for (let i = 0; i < data.length; i += 3) shift_pixel_hue(image.data, data, i, by);
  return with_data(image, data);
}

/** PIL's rgb2hsv and hsv2rgb of one pixel, with its roundings to 8 bits between them. */
function shift_pixel_hue(from: Bytes, to: Uint8Array, at: number, by: number): void {
  const [r, g, b] = [from[at] as number, from[at + 1] as number, from[at + 2] as number];
  const value = Math.max(r, g, b);
  const range = value - Math.min(r, g, b);
  const s = range === 0 ? 0 : Math.trunc(Math.fround(range / value) * 255);
  if (s === 0) {
    to.fill(value, at, at + 3);
    return;
  }
  const h = (hue_of(r, g, b, value, range) + by) & 255;
  const scaled = Math.fround(Math.fround(h * 6) / 255);
  const sector = Math.floor(scaled);
  const f = Math.fround(scaled - sector);
  const share = Math.fround(s / 255);
  const p = Math.round(value * (1 - share));
  const q = Math.round(value * (1 - share * f));
  const t = Math.round(value * (1 - share * (1 - f)));
  const colours = [
    [value, t, p],
    [q, value, p],
    [p, value, t],
    [p, q, value],
    [t, p, value],
    [value, p, q],
  ] as const;
  to.set(colours[sector % 6] as readonly number[], at);
}

/** From 0 to 255. */
function hue_of(r: number, g: number, b: number, value: number, range: number): number {
  const below = (channel: number) => Math.fround((value - channel) / range);
  let sixths: number;
  if (r === value) sixths = below(b) - below(g);
  else if (g === value) sixths = 2 + below(r) - below(b);
  else sixths = 4 + below(g) - below(r);
  const share = Math.fround((Math.fround(sixths) / 6 + 1) % 1);
  return Math.trunc(share * 255);
}

/** Blends each value with `other`. */
function blend_table(other: number, factor: number): Uint8Array {
  const alpha = Math.fround(factor);
  const table = new Uint8Array(256);
  for (let value = 0; value < 256; value++) table[value] = blend(other, value, alpha);
  return table;
}

/** PIL's Image.blend of two values: from `from` at 0 to `to` at 1, and beyond. */
export function blend(from: number, to: number, alpha: number): number {
  const mixed = Math.fround(from + Math.fround(alpha * (to - from)));
  return mixed <= 0 ? 0 : mixed >= 255 ? 255 : Math.trunc(mixed);
}

/** Maps each channel's values by a table that depends on its histogram; a channel without one is copied. */
export function by_channel_tables(
  image: RawImage,
  table_for: (histogram: number[]) => ((value: number) => number) | undefined,
): RawImage {
  const { channels } = image;
  const data = Uint8Array.from(image.data);
  for (let channel = 0; channel < channels; channel++) {
    const histogram = new Array<number>(256).fill(0);
    for (let i = channel; i < data.length; i += channels) {
      const value = data[i] as number;
      histogram[value] = (histogram[value] as number) + 1;
    }
    const map = table_for(histogram);
    if (map === undefined) continue;
    const table = Uint8Array.from({ length: 256 }, (_, value) => map(value));
    for (let i = channel; i < data.length; i += channels) data[i] = table[data[i] as number] as number;
  }
  return with_data(image, data);
}

export function by_table(image: RawImage, table: Uint8Array): RawImage {
  const data = new Uint8Array(image.data.length);
  for (let i = 0; i < data.length; i++) data[i] = table[image.data[i] as number] as number;
  return with_data(image, data);
}

function with_data({ width, height, channels }: RawImage, data: Uint8Array): RawImage {
  return new RawImage(data, width, height, channels);
}
