import { RawImage } from "../../image/raw_image.ts";
import { check_options } from "../../options.ts";
import { RAND_AUGMENT_RULES } from "../option_rules.ts";
import type { Random } from "../random.ts";
import {
  adjust_brightness,
  adjust_contrast,
  adjust_saturation,
  blend,
  by_channel_tables,
  by_table,
} from "./color_transforms.ts";
import { random_normal } from "./mixing.ts";
import type { ImageTransform } from "./transforms.ts";

/** Names and defaults of timm's "rand-m9-mstd0.5-inc1". */
export interface RandAugmentOptions {
  /** The strength of the changes, from 0 to 10; default 9. */
  magnitude?: number;
  /** The standard deviation of the strength; default 0.5. */
  magnitude_std?: number;
  /** How many changes are drawn for an image; default 2. */
  num_layers?: number;
  /** The probability that a drawn change is made; default 0.5. */
  prob?: number;
  /** The colour from 0 to 255 of what a moved image leaves empty, for each channel; default 128. */
  fill?: number | readonly number[];
}

type Fill = readonly number[];
/** Changes an image by a strength from 0 to 1. */
type Change = (image: RawImage, strength: number, random: Random, fill: Fill) => RawImage;

const MAX_MAGNITUDE = 10;

/** By their names in timm. Strengths increase, as with "inc1". */
const CHANGES: Readonly<Record<string, Change>> = {
  AutoContrast: (image) => auto_contrast(image),
  Equalize: (image) => equalize(image),
  Invert: (image) => solarize(image, 0),
  Rotate: (image, strength, random, fill) =>
    rotate(image, either_sign(30 * strength, random), filter(random), fill),
  // 0 bits, which newer Pillows refuse, would make the image black.
  PosterizeIncreasing: (image, strength) => posterize(image, Math.max(1, 4 - Math.trunc(4 * strength))),
  SolarizeIncreasing: (image, strength) => solarize(image, 256 - Math.trunc(256 * strength)),
  SolarizeAdd: (image, strength) => solarize_add(image, Math.trunc(110 * strength)),
  ColorIncreasing: (image, strength, random) => adjust_saturation(image, factor(strength, random)),
  ContrastIncreasing: (image, strength, random) => adjust_contrast(image, factor(strength, random)),
  BrightnessIncreasing: (image, strength, random) => adjust_brightness(image, factor(strength, random)),
  SharpnessIncreasing: (image, strength, random) => adjust_sharpness(image, factor(strength, random)),
  ShearX: (image, strength, random, fill) =>
    affine(image, [1, either_sign(0.3 * strength, random), 0, 0, 1, 0], filter(random), fill),
  ShearY: (image, strength, random, fill) =>
    affine(image, [1, 0, 0, either_sign(0.3 * strength, random), 1, 0], filter(random), fill),
  TranslateXRel: (image, strength, random, fill) =>
    affine(image, [1, 0, either_sign(0.45 * strength, random) * image.width, 0, 1, 0], filter(random), fill),
  TranslateYRel: (image, strength, random, fill) =>
    affine(image, [1, 0, 0, 0, 1, either_sign(0.45 * strength, random) * image.height], filter(random), fill),
};

/**
 * Changes of colour and geometry drawn at random (Cubuk et al., 2019), as timm's rand-m9-mstd0.5-inc1; each change is
 * Pillow's bit for bit. Images have one or three channels.
 * @throws VitMsnError INVALID_ARGUMENT
 */
export function rand_augment(options: RandAugmentOptions = {}): ImageTransform {
  check_options("rand_augment", options, RAND_AUGMENT_RULES);
  const { magnitude = 9, magnitude_std = 0.5, num_layers = 2, prob = 0.5, fill = 128 } = options;
  const colours = typeof fill === "number" ? [fill, fill, fill] : fill;
  const changes = Object.values(CHANGES);
  return (image, random) => {
    let changed = image;
    for (let i = 0; i < num_layers; i++) {
      const change = changes[random.integer(changes.length)] as Change;
      if (random.uniform() >= prob) continue;
      const drawn = magnitude + magnitude_std * random_normal(random);
      const strength = Math.min(Math.max(drawn, 0), MAX_MAGNITUDE) / MAX_MAGNITUDE;
      changed = change(changed, strength, random, colours);
    }
    return changed;
  };
}

function either_sign(value: number, random: Random): number {
  return random.uniform() < 0.5 ? value : -value;
}

/** The factor of a change of colour: 1 changes nothing. */
function factor(strength: number, random: Random): number {
  return Math.max(0.1, 1 + either_sign(0.9 * strength, random));
}

function filter(random: Random): Filter {
  return random.uniform() < 0.5 ? "bilinear" : "bicubic";
}

// Pillow's operations.

/** PIL's ImageOps.autocontrast: each channel is stretched to 0 to 255. */
export function auto_contrast(image: RawImage): RawImage {
  return by_channel_tables(image, (histogram) => {
    const low = histogram.findIndex((count) => count > 0);
    const high = histogram.findLastIndex((count) => count > 0);
    if (high <= low) return undefined;
    const scale = 255 / (high - low);
    const offset = -low * scale;
    return (value) => Math.min(255, Math.max(0, Math.trunc(value * scale + offset)));
  });
}

/** PIL's ImageOps.equalize: each channel gets a nearly uniform histogram. */
export function equalize(image: RawImage): RawImage {
  return by_channel_tables(image, (histogram) => {
    const counts = histogram.filter((count) => count > 0);
    const pixels = image.width * image.height;
    const step = counts.length > 1 ? Math.floor((pixels - (counts.at(-1) as number)) / 255) : 0;
    if (step === 0) return undefined;
    let below = Math.floor(step / 2);
    return (value) => {
      const level = Math.floor(below / step);
      below += histogram[value] as number;
      return Math.min(255, level);
    };
  });
}

/** PIL's ImageOps.posterize: only the upper `bits` bits of each value remain. */
export function posterize(image: RawImage, bits: number): RawImage {
  return by_table(
    image,
    table_of((value) => value & ~(2 ** (8 - bits) - 1)),
  );
}

/** PIL's ImageOps.solarize: values from `threshold` on are inverted. */
export function solarize(image: RawImage, threshold: number): RawImage {
  return by_table(
    image,
    table_of((value) => (value < threshold ? value : 255 - value)),
  );
}

/** timm's solarize_add: values below 128 grow by `add`. */
function solarize_add(image: RawImage, add: number): RawImage {
  return by_table(
    image,
    table_of((value) => (value < 128 ? Math.min(255, value + add) : value)),
  );
}

function table_of(of: (value: number) => number): Uint8Array {
  return Uint8Array.from({ length: 256 }, (_, value) => of(value));
}

/** Blends with the smoothed image: PIL's ImageEnhance.Sharpness. */
export function adjust_sharpness(image: RawImage, factor: number): RawImage {
  const { width, height, channels } = image;
  const row = width * channels;
  const alpha = Math.fround(factor);
  const data = Uint8Array.from(image.data);
  for (let y = 1; y < height - 1; y++) {
    for (let i = y * row + channels; i < (y + 1) * row - channels; i++) {
      let sum = 4 * (image.data[i] as number);
      for (const line of [i - row, i, i + row]) {
        for (const at of [line - channels, line, line + channels]) sum += image.data[at] as number;
      }
      data[i] = blend(Math.floor(sum / 13 + 0.5), image.data[i] as number, alpha);
    }
  }
  return new RawImage(data, width, height, channels);
}

/** PIL's Image.rotate by degrees, counterclockwise about the centre. */
export function rotate(image: RawImage, degrees: number, filter: Filter, fill: Fill): RawImage {
  if (degrees === 0) return image;
  const angle = (-(((degrees % 360) + 360) % 360) * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)].map((x) => Number(x.toFixed(15))) as [number, number];
  const [x, y] = [image.width / 2, image.height / 2];
  return affine(image, [cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y], filter, fill);
}

export type Filter = "bilinear" | "bicubic";
/** A pixel (x, y) of the result comes from (a·x + b·y + c, d·x + e·y + f). */
export type AffineMap = readonly [number, number, number, number, number, number];

/** PIL's Image.transform by an affine map; pixels from outside the image have the colour `fill`. */
export function affine(image: RawImage, map: AffineMap, filter: Filter, fill: Fill): RawImage {
  const { width, height, channels, data } = image;
  const [a, b, c, d, e, f] = map;
  const sample = filter === "bilinear" ? bilinear : bicubic;
  const out = new Uint8Array(data.length);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from_x = a * (x + 0.5) + b * (y + 0.5) + c;
      const from_y = d * (x + 0.5) + e * (y + 0.5) + f;
      const is_inside = from_x >= 0 && from_x < width && from_y >= 0 && from_y < height;
      for (let channel = 0; channel < channels; channel++, to++) {
        out[to] = is_inside ? sample(image, from_x - 0.5, from_y - 0.5, channel) : (fill[channel] as number);
      }
    }
  }
  return new RawImage(out, width, height, channels);
}

/** A channel's value; columns beyond an edge are those at the edge. */
function at({ width, channels, data }: RawImage, x: number, y: number, channel: number): number {
  return data[(y * width + Math.min(Math.max(x, 0), width - 1)) * channels + channel] as number;
}

function bilinear(image: RawImage, x: number, y: number, channel: number): number {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const line = (y: number) => {
    const first = at(image, left, y, channel);
    return first + (at(image, left + 1, y, channel) - first) * (x - left);
  };
  const upper = line(Math.max(top, 0));
  const lower = top + 1 < image.height ? line(top + 1) : upper;
  return Math.trunc(upper + (lower - upper) * (y - top));
}

function bicubic(image: RawImage, x: number, y: number, channel: number): number {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const line = (y: number) =>
    cubic(
      at(image, left - 1, y, channel),
      at(image, left, y, channel),
      at(image, left + 1, y, channel),
      at(image, left + 2, y, channel),
      x - left,
    );
  // A line beyond an edge is the line before it.
  const lines = [line(Math.max(top - 1, 0))];
  for (const y of [top, top + 1, top + 2])
    lines.push(y >= 0 && y < image.height ? line(y) : (lines.at(-1) as number));
  const [p, q, r, s] = lines as [number, number, number, number];
  return Math.min(255, Math.max(0, Math.trunc(cubic(p, q, r, s, y - top))));
}

/** Pillow's cubic convolution with a = −1, at `at` from 0 to 1 between q and r. */
function cubic(p: number, q: number, r: number, s: number, at: number): number {
  return q + at * (-p + r + at * (2 * (p - q) + r - s + at * (-p + q - r + s)));
}
