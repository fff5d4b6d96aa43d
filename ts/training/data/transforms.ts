import type { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import { output_size } from "../../image/output_size.ts";
import { RawImage, type ResampleCode } from "../../image/raw_image.ts";
import { check_options } from "../../options.ts";
import { CROP_RULES } from "../option_rules.ts";
import type { Random } from "../random.ts";

/**
 * Changes an image before the processor turns it into pixel_values; `random` is specific to the image and the
 * epoch.
 */
export type ImageTransform = (image: RawImage, random: Random) => RawImage;

/** [height, width] in pixels. */
export type Size = readonly [number, number];

export interface RandomResizedCropOptions {
  /** The share of the image's area that the crop covers; default [0.08, 1]. */
  scale?: readonly [number, number];
  /** Width by height of the crop; default [3/4, 4/3]. */
  ratio?: readonly [number, number];
  /** Pillow's code for the filter; default 2, bilinear. */
  resample?: ResampleCode;
}

interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Attempts at a crop of the drawn area and shape before falling back, as in torchvision. */
const TRIES = 10;

/** One transform after the other. */
export function compose(...transforms: readonly ImageTransform[]): ImageTransform {
  return (image, random) => transforms.reduce((result, transform) => transform(result, random), image);
}

/** A random part of the image, resized to `size`: torchvision's RandomResizedCrop. */
export function random_resized_crop(size: Size, options: RandomResizedCropOptions = {}): ImageTransform {
  check_options("random_resized_crop", options, CROP_RULES);
  const { scale = [0.08, 1], ratio = [3 / 4, 4 / 3], resample } = options;
  const [height, width] = size;
  return (image, random) =>
    crop(image, random_box(image, scale, ratio, random)).resize(width, height, { resample });
}

/** torchvision's RandomResizedCrop.get_params. */
export function random_box(
  { width, height }: Pick<RawImage, "width" | "height">,
  scale: readonly [number, number],
  ratio: readonly [number, number],
  random: Pick<Random, "uniform" | "integer">,
): Box {
  for (let i = 0; i < TRIES; i++) {
    const area = width * height * random.uniform(...scale);
    const shape = Math.exp(random.uniform(Math.log(ratio[0]), Math.log(ratio[1])));
    const w = Math.round(Math.sqrt(area * shape));
    const h = Math.round(Math.sqrt(area / shape));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    const top = random.integer(height - h + 1);
    return { left: random.integer(width - w + 1), top, width: w, height: h };
  }
  return middle_box(width, height, ratio);
}

/** The largest centred crop with an allowed aspect ratio. */
function middle_box(width: number, height: number, [lowest, highest]: readonly [number, number]): Box {
  const shape = width / height;
  const w = shape > highest ? Math.round(height * highest) : width;
  const h = shape < lowest ? Math.round(width / lowest) : height;
  return { left: (width - w) >> 1, top: (height - h) >> 1, width: w, height: h };
}

/** Mirrors the image with probability `probability`: torchvision's RandomHorizontalFlip. */
export function random_horizontal_flip(probability = 0.5): ImageTransform {
  return (image, random) => (random.uniform() < probability ? mirror(image) : image);
}

/** Swaps left and right. */
export function mirror(image: RawImage): RawImage {
  const { width, height, channels, data } = image;
  const mirrored = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (y * width + x) * channels;
      const to = (y * width + width - 1 - x) * channels;
      for (let c = 0; c < channels; c++) mirrored[to + c] = data[from + c] as number;
    }
  }
  return new RawImage(mirrored, width, height, channels);
}

/** The transforms of transformers' example script. */
export interface ReferenceTransforms {
  /** RandomResizedCrop and a horizontal flip. */
  train: ImageTransform;
  /** Resize and CenterCrop. */
  eval: ImageTransform;
}

/**
 * The transforms of transformers' run_image_classification.py for a processor's size: in evaluation, a size
 * by height and width stretches images, and a size by shortest edge crops their centre.
 */
export function reference_transforms(processor: ViTImageProcessor): ReferenceTransforms {
  const { size, resample, do_convert_rgb } = processor;
  const target: Size =
    "shortest_edge" in size ? [size.shortest_edge, size.shortest_edge] : output_size(size, 1 << 20, 1 << 20);
  const channels = (image: RawImage) => (do_convert_rgb ? image.rgb() : image);
  const augment = compose(random_resized_crop(target, { resample }), random_horizontal_flip());
  return {
    train: (image, random) => augment(channels(image), random),
    eval: (input) => {
      const image = channels(input);
      const [height, width] =
        "shortest_edge" in size
          ? output_size({ shortest_edge: size.shortest_edge }, image.height, image.width)
          : target;
      return center_crop(image.resize(width, height, { resample }), target);
    },
  };
}

/** torchvision's CenterCrop: half pixels are rounded to even. */
function center_crop(image: RawImage, [height, width]: Size): RawImage {
  const top = half_to_even(image.height - height);
  return crop(image, { left: half_to_even(image.width - width), top, width, height });
}

function half_to_even(difference: number): number {
  const half = Math.floor(difference / 2);
  return difference % 2 !== 0 && half % 2 !== 0 ? half + 1 : half;
}

function crop(image: RawImage, { left, top, width, height }: Box): RawImage {
  if (width === image.width && height === image.height) return image;
  return image.crop([left, top, left + width - 1, top + height - 1]);
}
