import { numbers_of, Tensor } from "../../tensor.ts";
import type { Random } from "../random.ts";
import type { DataCollator } from "./collate.ts";
import { random_normal } from "./mixing.ts";

/** Names and defaults of timm's RandomErasing in mode "pixel". */
export interface ErasingOptions {
  /** The probability that a box of a training image is erased. */
  random_erasing_prob: number;
}

/** The share of the image's area that a box covers, and its aspect ratio (height by width). */
const [MIN_AREA, MAX_AREA] = [0.02, 1 / 3];
const [MIN_ASPECT, MAX_ASPECT] = [0.3, 1 / 0.3];
const TRIES = 10;

/**
 * Random erasing (Zhong et al., 2020) of training images: a box of an image becomes normal noise. It works on normalised
 * pixels, as timm's does.
 */
export function erasing_collator(
  collate: DataCollator,
  { random_erasing_prob }: ErasingOptions,
): DataCollator {
  return async (drawn, context) => {
    const batch = await collate(drawn, context);
    if (batch === undefined || !context.is_training) return batch;
    const { dims } = batch.pixel_values;
    const [rows, channels, height, width] = dims as [number, number, number, number];
    const data = Float32Array.from(numbers_of(batch.pixel_values));
    const size = channels * height * width;
    for (let row = 0; row < rows; row++) {
      if (context.random.uniform() >= random_erasing_prob) continue;
      erase(data.subarray(row * size, (row + 1) * size), channels, height, width, context.random);
    }
    return { ...batch, pixel_values: new Tensor("float32", data, dims) };
  };
}

function erase(image: Float32Array, channels: number, height: number, width: number, random: Random): void {
  for (let i = 0; i < TRIES; i++) {
    const area = random.uniform(MIN_AREA, MAX_AREA) * height * width;
    const aspect = Math.exp(random.uniform(Math.log(MIN_ASPECT), Math.log(MAX_ASPECT)));
    const [h, w] = [Math.round(Math.sqrt(area * aspect)), Math.round(Math.sqrt(area / aspect))];
    if (h >= height || w >= width) continue;
    const [top, left] = [random.integer(height - h + 1), random.integer(width - w + 1)];
    for (let channel = 0; channel < channels; channel++) {
      for (let y = top; y < top + h; y++) {
        const start = (channel * height + y) * width + left;
        for (let x = 0; x < w; x++) image[start + x] = random_normal(random);
      }
    }
    return;
  }
}
