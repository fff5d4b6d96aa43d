import type { ViTImageProcessor } from "../../ts/image/image_processing_vit.ts";
import type { RawImage } from "../../ts/image/raw_image.ts";
import {
  type Example,
  FEATURE_KINDS,
  type FeatureKind,
  normalize_feature,
} from "../../ts/learning/features.ts";
import { fit_head } from "../../ts/learning/fit.ts";
import { type FitOptions, plan_fit } from "../../ts/learning/fit_options.ts";
import { predict } from "../../ts/learning/heads.ts";
import type { ViTMSNModel } from "../../ts/model/modeling_vit_msn.ts";
import { permutation, Random } from "../../ts/training/random.ts";

const BATCH = 50;

/** Normalised features of images. */
export type Embed = (images: readonly RawImage[]) => Promise<Float32Array[]>;

export function embed_by(model: ViTMSNModel, processor: ViTImageProcessor, features: FeatureKind): Embed {
  const { pool, before_norm } = FEATURE_KINDS[features];
  return async (images) => {
    const found: Float32Array[] = [];
    for (let i = 0; i < images.length; i += BATCH) {
      const { pixel_values } = await processor(images.slice(i, i + BATCH));
      const { data, dims } = await model.get_image_features({ pixel_values }, pool, { before_norm });
      const size = dims[1] as number;
      for (let row = 0; row < data.length; row += size)
        found.push(normalize_feature(data.slice(row, row + size), features));
    }
    return found;
  };
}

/** Each draw's labelled images, class by class: `shots` of each, the first of which are the draw for fewer shots. */
export function draw_images(
  train: readonly (readonly RawImage[])[],
  shots: number,
  draws: number,
): RawImage[][][] {
  const random = new Random(0);
  return Array.from({ length: draws }, () =>
    train.map((images) => {
      const chosen = permutation(images.length, random).subarray(0, shots);
      return Array.from(chosen, (i) => images[i] as RawImage);
    }),
  );
}

/** A draw's examples, class by class. */
export async function embed_draw(drawn: readonly RawImage[][], embed: Embed): Promise<Example[][]> {
  const classes: Example[][] = [];
  for (const [kind, images] of drawn.entries()) {
    const features = await embed(images);
    classes.push(features.map((feature, id) => ({ id, label: String(kind), feature })));
  }
  return classes;
}

/** The share of `test`, class by class, that a head fitted to the examples gets right. */
export async function head_accuracy(
  examples: readonly Example[],
  test: readonly (readonly Float32Array[])[],
  fit: FitOptions,
): Promise<number> {
  const { head } = await fit_head(examples, plan_fit(fit), {});
  const right = test.flatMap((list, kind) =>
    list.filter((feature) => predict(head, feature) === String(kind)),
  );
  return right.length / test.flat().length;
}

/** The mean and the standard deviation of a sample. */
export function moments(values: readonly number[]): { mean: number; deviation: number } {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / Math.max(1, values.length - 1);
  return { mean, deviation: Math.sqrt(variance) };
}

/** Shares in per cent, as "75.03 ± 3.10". */
export function show_spread(values: readonly number[]): string {
  const { mean, deviation } = moments(values);
  return `${(100 * mean).toFixed(2)} ± ${(100 * deviation).toFixed(2)}`;
}
