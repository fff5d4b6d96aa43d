import { VitMsnError } from "../errors.ts";
import type { ViTMSNModel } from "../model/modeling_vit_msn.ts";

/** The features of an image, each [hidden_size]. */
export const FEATURE_KINDS = {
  /** CLS of the last block, before the final layernorm: what the MSN paper evaluates. */
  cls_before_norm: { pool: "cls", before_norm: true },
  /** CLS after the final layernorm: what the model's classifier reads. */
  cls: { pool: "cls", before_norm: false },
  /** The mean of the patch tokens after the final layernorm. */
  mean: { pool: "mean", before_norm: false },
  /** The mean of the patch tokens of the last block, before the final layernorm. */
  mean_before_norm: { pool: "mean", before_norm: true },
} as const satisfies Record<
  string,
  { pool: Parameters<ViTMSNModel["get_image_features"]>[1]; before_norm: boolean }
>;
export type FeatureKind = keyof typeof FEATURE_KINDS;

/** An added image. */
export interface Example {
  id: number;
  label: string;
  /** [hidden_size]. */
  feature: Float32Array;
}

/**
 * The feature with its own mean subtracted, at length 1, as in MSN's low-shot evaluation (cyanure.preprocess
 * with centering and normalisation, a row at a time). A constant feature becomes zeros.
 */
export function center_and_normalize(feature: Float32Array): Float32Array {
  let mean = 0;
  for (const value of feature) mean += value / feature.length;
  let square = 0;
  for (const value of feature) square += (value - mean) ** 2;
  const scale = square > 0 ? 1 / Math.sqrt(square) : 0;
  return feature.map((value) => (value - mean) * scale);
}

/** @throws VitMsnError INVALID_ARGUMENT if the network returned NaN or infinity. */
export function check_feature(feature: Float32Array, what: string): Float32Array {
  const bad = feature.findIndex((value) => !Number.isFinite(value));
  if (bad < 0) return feature;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `The feature of ${what} holds ${feature[bad]}; the backbone's weights are probably damaged.`,
  );
}

/** The labels of examples, in order of first appearance. */
export function labels_of(examples: readonly Example[]): string[] {
  return [...new Set(examples.map(({ label }) => label))];
}
