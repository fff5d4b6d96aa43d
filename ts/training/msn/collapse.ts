/** What a step's targets and projections say about collapse. */
export interface TargetStatistics {
  /** Each picture's prototype with the largest target, the first of several. */
  first: Int32Array;
  /** The mean over pictures of the largest target. */
  target_max: number;
  /** The mean cosine between the projections of two different pictures. */
  target_similarity: number;
}

/** Above this mean cosine between pictures, and below this share of the prototypes that could be used, all pictures look the same. */
const MOST_SIMILAR = 0.99;
const LEAST_USED = 0.02;

/**
 * @param targets [B, K].
 * @param projections [B, D].
 */
export function target_statistics(
  targets: Float32Array,
  projections: Float32Array,
  batch: number,
): TargetStatistics {
  const prototypes = targets.length / batch;
  const first = new Int32Array(batch);
  let largest = 0;
  for (let i = 0; i < batch; i++) {
    const row = i * prototypes;
    let best = 0;
    for (let k = 1; k < prototypes; k++) {
      if ((targets[row + k] as number) > (targets[row + best] as number)) best = k;
    }
    first[i] = best;
    largest += targets[row + best] as number;
  }
  return { first, target_max: largest / batch, target_similarity: mean_cosine(projections, batch) };
}

/** Of all pairs of rows: the square of their summed directions has them all, and each row with itself. */
function mean_cosine(rows: Float32Array, count: number): number {
  const width = rows.length / count;
  const sum = new Float64Array(width);
  for (let i = 0; i < count; i++) {
    let squares = 0;
    for (let d = 0; d < width; d++) squares += (rows[i * width + d] as number) ** 2;
    const scale = 1 / Math.max(1e-12, Math.sqrt(squares));
    for (let d = 0; d < width; d++) sum[d] = (sum[d] as number) + (rows[i * width + d] as number) * scale;
  }
  const square = sum.reduce((total, value) => total + value * value, 0);
  return count < 2 ? 1 : (square - count) / (count * (count - 1));
}

export interface CollapseFacts {
  prototypes_used: number;
  num_proto: number;
  target_similarity: number;
  /** Steps that prototypes_used looks back over, and pictures of a step. */
  window: number;
  batch: number;
  use_sinkhorn: boolean;
}

/** What is wrong, as a part of a sentence; undefined where nothing is. */
export function signs_of_collapse(facts: CollapseFacts): string | undefined {
  const { prototypes_used, num_proto, target_similarity, window, batch } = facts;
  const usable = Math.min(num_proto, window * batch);
  const signs = [
    prototypes_used < Math.max(2, LEAST_USED * usable) &&
      `only ${prototypes_used} of ${num_proto} prototypes were any picture's target in the last ${window} steps`,
    target_similarity > MOST_SIMILAR &&
      `the target's projections of different pictures have a mean cosine of ${target_similarity.toFixed(4)}`,
  ].filter(Boolean);
  return signs.length > 0 ? signs.join(", and ") : undefined;
}

/** The warning for a collapse that was noticed after a step. */
export function collapse_message(step: number, signs: string, { use_sinkhorn }: CollapseFacts): string {
  const balance = use_sinkhorn ? "raise memax_weight" : "set use_sinkhorn, or raise memax_weight to 5";
  return (
    `Pre-training seems to have collapsed by step ${step}: ${signs}. The model tells pictures apart no longer, and more steps rarely ` +
    `help. Begin anew with views that differ more (a wider rand_crop_scale, more color_jitter_strength), ${balance}, lower ` +
    "learning_rate or lengthen warmup_epochs, and take larger batches or fewer num_proto."
  );
}
