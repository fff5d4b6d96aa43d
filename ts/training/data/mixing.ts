import { invalid_argument } from "../../errors.ts";
import type { ViTMSNConfig } from "../../model/configuration_vit_msn.ts";
import { class_indices } from "../../model/losses.ts";
import { numbers_of, Tensor } from "../../tensor.ts";
import type { Random } from "../random.ts";
import type { Batch, DataCollator } from "./collate.ts";

/** How the images of a batch are mixed in pairs; names and defaults of timm's Mixup. */
export interface MixingOptions {
  /** α of Mixup's Beta(α, α); 0: no Mixup. Default 0. */
  mixup_alpha?: number;
  /** α of CutMix's Beta(α, α); 0: no CutMix. Default 0. */
  cutmix_alpha?: number;
  /** The probability that a batch is mixed; default 1. */
  mixup_prob?: number;
  /** The probability of CutMix instead of Mixup, if both are on; default 0.5. */
  mixup_switch_prob?: number;
}

/**
 * Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of training batches: each image with the one at the other end
 * of the batch, by the same share λ, which the labels become soft by. Source: timm's Mixup in mode "batch".
 */
export function mixing_collator(
  collate: DataCollator,
  config: ViTMSNConfig,
  options: MixingOptions,
): DataCollator {
  return async (drawn, context) => {
    const batch = await collate(drawn, context);
    if (batch === undefined || !context.is_training) return batch;
    return mix_batch(batch, config, options, context.random);
  };
}

/** @throws VitMsnError INVALID_ARGUMENT for images without a class. */
function mix_batch(batch: Batch, config: ViTMSNConfig, options: MixingOptions, random: Random): Batch {
  const { mixup_alpha = 0, cutmix_alpha = 0, mixup_prob = 1, mixup_switch_prob = 0.5 } = options;
  config.problem_type ??= "single_label_classification";
  if (batch.labels === undefined || config.problem_type !== "single_label_classification") {
    throw invalid_argument("Mixup and CutMix need images with one class each.", "mixup_alpha");
  }
  const targets = soft_labels(batch.labels, config.num_labels);
  if (random.uniform() >= mixup_prob) return { ...batch, labels: targets };
  const uses_cutmix = cutmix_alpha > 0 && (mixup_alpha === 0 || random.uniform() < mixup_switch_prob);
  const drawn = random_beta(uses_cutmix ? cutmix_alpha : mixup_alpha, random);
  const { pixel_values, share } = uses_cutmix
    ? paste(batch.pixel_values, drawn, random)
    : { pixel_values: blend(batch.pixel_values, drawn), share: drawn };
  return { ...batch, pixel_values, labels: blend(targets, share) };
}

/** Class indices, or soft labels as they are, as float32 [batch, num_labels]. */
function soft_labels(labels: Tensor, num_labels: number): Tensor {
  if (labels.dims.length === 2) return labels;
  const rows = labels.size;
  const data = new Float32Array(rows * num_labels);
  for (const [row, label] of class_indices(labels, rows, num_labels).entries()) {
    if (label >= 0) data[row * num_labels + label] = 1;
  }
  return new Tensor("float32", data, [rows, num_labels]);
}

/** share · x + (1 − share) · (x with its rows in reverse). */
function blend(x: Tensor, share: number): Tensor {
  const values = numbers_of(x);
  const rows = x.dims[0] as number;
  const size = values.length / rows;
  const data = Float32Array.from(values, (value, i) => {
    const [row, column] = [Math.floor(i / size), i % size];
    return share * value + (1 - share) * (values[(rows - 1 - row) * size + column] as number);
  });
  return new Tensor("float32", data, x.dims);
}

/** A box with a share of about 1 − drawn of the area comes from the other image; `share` is what remains. */
function paste(x: Tensor, drawn: number, random: Random): { pixel_values: Tensor; share: number } {
  const [rows, channels, height, width] = x.dims as [number, number, number, number];
  const values = Float32Array.from(numbers_of(x));
  const data = values.slice();
  const [cut_height, cut_width] = [height, width].map((side) => Math.trunc(side * Math.sqrt(1 - drawn))) as [
    number,
    number,
  ];
  const [y, x0] = [random.integer(height), random.integer(width)];
  const [top, bottom] = span(y, cut_height, height);
  const [left, right] = span(x0, cut_width, width);
  for (let plane = 0; plane < rows * channels; plane++) {
    const [row, channel] = [Math.floor(plane / channels), plane % channels];
    const other = (rows - 1 - row) * channels + channel;
    for (let line = top; line < bottom; line++) {
      const from = (other * height + line) * width;
      data.set(values.subarray(from + left, from + right), (plane * height + line) * width + left);
    }
  }
  const share = 1 - ((bottom - top) * (right - left)) / (height * width);
  return { pixel_values: new Tensor("float32", data, x.dims), share };
}

/** `length` positions around a centre, within [0, side). */
function span(centre: number, length: number, side: number): [number, number] {
  const half = Math.floor(length / 2);
  return [Math.max(0, centre - half), Math.min(side, centre + half)];
}

/** From Beta(α, α), as a ratio of two gamma variates. */
export function random_beta(alpha: number, random: Pick<Random, "uniform">): number {
  const [a, b] = [random_gamma(alpha, random), random_gamma(alpha, random)];
  return a + b > 0 ? a / (a + b) : 0.5;
}

/** Marsaglia and Tsang (2000); below 1, a variate of shape + 1 times U^(1/shape). */
function random_gamma(shape: number, random: Pick<Random, "uniform">): number {
  if (shape < 1) return random_gamma(shape + 1, random) * (1 - random.uniform()) ** (1 / shape);
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = random_normal(random);
    const v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - random.uniform()) < 0.5 * x ** 2 + d - d * v + d * Math.log(v)) return d * v;
  }
}

/** Box and Muller. */
export function random_normal(random: Pick<Random, "uniform">): number {
  const radius = Math.sqrt(-2 * Math.log(1 - random.uniform()));
  return radius * Math.cos(2 * Math.PI * random.uniform());
}
