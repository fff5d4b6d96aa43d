import { VitMsnError } from "../errors.ts";
import type { ViTMSNModel } from "../model/modeling_vit_msn.ts";

/** The features of an image: [hidden_size], or [2 · hidden_size] for cls_mean. */
export const FEATURE_KINDS = {
  /** CLS of the last block, before the final layernorm: what the MSN paper evaluates. */
  cls_before_norm: { pool: "cls", before_norm: true },
  /** CLS after the final layernorm: what the model's classifier reads. */
  cls: { pool: "cls", before_norm: false },
  /** The mean of the patch tokens after the final layernorm. */
  mean: { pool: "mean", before_norm: false },
  /** The mean of the patch tokens of the last block, before the final layernorm. */
  mean_before_norm: { pool: "mean", before_norm: true },
  /** cls_before_norm, then mean_before_norm: better than either where there are many labels. */
  cls_mean: { pool: "cls_mean", before_norm: true },
} as const satisfies Record<
  string,
  { pool: Parameters<ViTMSNModel["get_image_features"]>[1]; before_norm: boolean }
>;
export type FeatureKind = keyof typeof FEATURE_KINDS;

/** An added image. */
export interface Example {
  id: number;
  label: string;
  feature: Float32Array;
}

/** The number of parts of a feature, each [hidden_size]. */
export function parts_of(kind: FeatureKind): number {
  return FEATURE_KINDS[kind].pool === "cls_mean" ? 2 : 1;
}

/** A feature with each of its parts centred and normalised. */
export function normalize_feature(feature: Float32Array, kind: FeatureKind): Float32Array {
  const size = feature.length / parts_of(kind);
  const normalized = new Float32Array(feature.length);
  for (let start = 0; start < feature.length; start += size)
    normalized.set(center_and_normalize(feature.subarray(start, start + size)), start);
  return normalized;
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
