/** Statistics of a step's targets and projections that indicate collapse. */
export interface TargetStatistics {
  /** Each image's prototype with the largest target, the first among equals. */
  first: Int32Array;
  /** The mean over images of the largest target. */
  target_max: number;
  /** The mean cosine between the projections of two different images. */
  target_similarity: number;
}

/**
 * Signs of collapse: a mean cosine between images above this, or a share of the usable prototypes below this.
 */
const MAX_SIMILARITY = 0.99;
const MIN_USED = 0.02;

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

/**
 * Over all pairs of rows: the squared sum of their directions contains every pair, and each row with itself.
 */
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
  /** The steps over which prototypes_used counts, and the images per step. */
  window: number;
  batch: number;
  use_sinkhorn: boolean;
}

/** The signs of collapse, as part of a sentence; undefined if there are none. */
export function signs_of_collapse(facts: CollapseFacts): string | undefined {
  const { prototypes_used, num_proto, target_similarity, window, batch } = facts;
  const usable = Math.min(num_proto, window * batch);
  const signs = [
    prototypes_used < Math.max(2, MIN_USED * usable) &&
      `only ${prototypes_used} of ${num_proto} prototypes were the first target of an image in the last ${window} steps`,
    target_similarity > MAX_SIMILARITY &&
      `the mean cosine between the target's projections of different images is ${target_similarity.toFixed(4)}`,
  ].filter(Boolean);
  return signs.length > 0 ? signs.join(", and ") : undefined;
}

/** The warning about a collapse that was noticed after a step. */
export function collapse_message(step: number, signs: string, { use_sinkhorn }: CollapseFacts): string {
  const balance = use_sinkhorn ? "raise memax_weight" : "set use_sinkhorn, or raise memax_weight to 5";
  return (
    `Pre-training seems to have collapsed by step ${step}: ${signs}. The model no longer distinguishes images, and more steps rarely ` +
    `help. Start again with views that differ more (a wider rand_crop_scale, more color_jitter_strength), ${balance}, lower ` +
    "learning_rate or raise warmup_epochs, and use larger batches or fewer num_proto."
  );
}
