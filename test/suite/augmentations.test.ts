import { RawImage } from "vit-msn";
import {
  adjust_brightness,
  adjust_contrast,
  adjust_hue,
  adjust_saturation,
  color_jitter,
  gaussian_blur,
  Random,
  rand_augment,
  random_apply,
  random_gaussian_blur,
  random_grayscale,
} from "vit-msn/training";
import { describe, expect, test } from "vitest";
import {
  type AffineMap,
  adjust_sharpness,
  affine,
  auto_contrast,
  equalize,
  type Filter,
  posterize,
  rotate,
  solarize,
} from "../../ts/training/data/rand_augment.ts";
import { read_file } from "../support/files.ts";

const FILTERS = ["bilinear", "bicubic"] as const satisfies Filter[];
const FILL = [124, 116, 104];

interface Recorded
  extends Record<`affine_${Filter}`, [AffineMap, string][]>,
    Record<`rotate_${Filter}` | "sharpness" | "posterize" | "solarize", [number, string][]>,
    Record<"auto_contrast" | "equalize", [number, string][]>,
    Record<"brightness" | "contrast" | "saturation" | "hue" | "blur", [number, string][]> {
  size: [number, number];
  channels: 1 | 3;
  data: string;
}

const bytes_of = (base64: string) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
const recorded: Record<string, Recorded> = JSON.parse(
  new TextDecoder().decode(await read_file("test/fixtures/augmentations.json")),
);
const image_of = ({ size, channels, data }: Recorded) => new RawImage(bytes_of(data), ...size, channels);
const noise = image_of(recorded.noise as Recorded);

describe.each(Object.keys(recorded))("as Pillow and torchvision, bit for bit: %s", (name) => {
  const one = recorded[name] as Recorded;
  test.each([
    ["brightness", adjust_brightness],
    ["contrast", adjust_contrast],
    ["saturation", adjust_saturation],
    ["hue", adjust_hue],
    ["blur", gaussian_blur],
    ["sharpness", adjust_sharpness],
    ["auto_contrast", auto_contrast],
    ["equalize", equalize],
    ["posterize", posterize],
    ["solarize", solarize],
    ...FILTERS.map((filter) => [
      `rotate_${filter}`,
      (image: RawImage, degrees: number) => rotate(image, degrees, filter, FILL),
    ]),
    ...FILTERS.map((filter) => [
      `affine_${filter}`,
      (image: RawImage, map: AffineMap) => affine(image, map, filter, FILL),
    ]),
  ] as [keyof Recorded, (image: RawImage, value: unknown) => RawImage][])("%s", (change, apply) => {
    for (const [value, expected] of one[change] as [unknown, string][]) {
      const image = apply(image_of(one), value);
      expect(image.data, `${change} by ${value}`).toEqual(bytes_of(expected));
      expect([image.width, image.height, image.channels]).toEqual([...one.size, one.channels]);
    }
  });
});

describe("at random", () => {
  const times = <T>(count: number, make: (random: Random) => T) =>
    Array.from({ length: count }, (_, i) => make(new Random(5, i)));

  test("a transform is done with its probability", () => {
    const changed = times(1000, (random) => random_apply(() => noise.clone(), 0.2)(noise, random) !== noise);
    const share = changed.filter(Boolean).length / changed.length;
    expect(Math.abs(share - 0.2)).toBeLessThan(4 * Math.sqrt((0.2 * 0.8) / 1000));
  });

  test("grey keeps the channels", () => {
    const { data, channels } = random_grayscale(1)(noise, new Random(1));
    expect(channels).toBe(3);
    for (let i = 0; i < data.length; i += 3)
      expect(data[i] === data[i + 1] && data[i] === data[i + 2]).toBe(true);
    expect(random_grayscale(0)(noise, new Random(1))).toBe(noise);
  });

  test("the same random numbers give the same image; others give another", () => {
    const jitter = color_jitter({ brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 });
    const images = times(40, (random) => jitter(noise, random).data.join());
    expect(times(40, (random) => jitter(noise, random).data.join())).toEqual(images);
    expect(new Set(images).size).toBe(40);
    const blur = random_gaussian_blur(1, [0.1, 2]);
    expect(new Set(times(40, (random) => blur(noise, random).data.join())).size).toBeGreaterThan(30);
  });

  test("RandAugment changes most images, within their size, the same way for the same numbers", () => {
    const augment = rand_augment({ fill: FILL });
    const images = times(60, (random) => augment(noise, random));
    expect(times(60, (random) => augment(noise, random))).toEqual(images);
    for (const { width, height, channels } of images)
      expect([width, height, channels]).toEqual([noise.width, noise.height, noise.channels]);
    // Two changes, each made with probability 1/2.
    const changed = images.filter((image) => image !== noise).length;
    expect(changed).toBeGreaterThan(30);
    expect(changed).toBeLessThan(58);
    expect(new Set(images.map(({ data }) => data.join())).size).toBeGreaterThan(25);
    expect(rand_augment({ prob: 0 })(noise, new Random(1))).toBe(noise);
    expect(() => rand_augment({ magnitud: 9 } as never)).toThrow(/no option "magnitud".*magnitude/);
  });

  test("jitter of nothing changes nothing", () => {
    expect(color_jitter({})(noise, new Random(1))).toBe(noise);
  });

  test("brightness lies within its range", () => {
    const white = new RawImage(new Uint8Array(4).fill(100), 2, 2, 1);
    const values = times(500, (random) => color_jitter({ brightness: 0.4 })(white, random).data[0] as number);
    expect(Math.min(...values)).toBeGreaterThanOrEqual(60);
    expect(Math.max(...values)).toBeLessThanOrEqual(140);
    expect(Math.max(...values) - Math.min(...values)).toBeGreaterThan(70);
  });
});
