import type { Pacer } from "../engine/pacer.ts";
import { VitMsnError } from "../errors.ts";
import type { ProductEngine } from "./engine_products.ts";
import type { LearningProgressCallback, LogisticPlan } from "./fit_options.ts";
import { argmax, softmax } from "./heads.ts";
import { type Design, fit_logistic_regression, type Rows, type Solution } from "./logistic_regression.ts";

/** The results of one penalty on held-out images. */
export interface PenaltyScore {
  penalty: number;
  /** The share of images that were classified correctly. */
  accuracy: number;
  /** Their mean cross-entropy. */
  loss: number;
}

export interface CrossValidationOptions {
  pacer: Pacer;
  /** Computes the products of large problems. */
  engine?: ProductEngine | undefined;
  progress_callback?: LearningProgressCallback | undefined;
}

/** Comparing penalties doesn't need a precise optimum. */
const TOLERANCE = 1e-3;

/**
 * Stratified k-fold cross-validation of the penalties: fold i mod k holds out the i-th image of each class,
 * in the order in which they were added. Each fold runs from the strongest penalty to the weakest, each fit
 * starting from the previous one.
 * @throws VitMsnError INVALID_ARGUMENT if a label has a single image.
 */
export async function cross_validate(
  { rows }: Design,
  classes: Int32Array,
  labels: readonly string[],
  plan: LogisticPlan,
  { pacer, engine, progress_callback }: CrossValidationOptions,
): Promise<PenaltyScore[]> {
  const { fold_of, folds } = stratify(classes, labels, plan.folds);
  const penalties = [...new Set(plan.penalties)].sort((a, b) => b - a);
  const scores = penalties.map((penalty) => ({ penalty, right: 0, loss: 0 }));
  const total = folds * penalties.length;
  for (let fold = 0, done = 0; fold < folds; fold++) {
    const fitted = select(rows, classes, (i) => fold_of[i] !== fold);
    const held_out = select(rows, classes, (i) => fold_of[i] === fold);
    let start: Solution | undefined;
    for (const score of scores) {
      start = await fit_logistic_regression(fitted.rows, fitted.classes, labels.length, {
        ...plan,
        penalty: score.penalty,
        tolerance: Math.max(plan.tolerance, TOLERANCE),
        start,
        pacer,
        engine,
      });
      const { right, loss } = judge(start, held_out.rows, held_out.classes);
      score.right += right;
      score.loss += loss;
      progress_callback?.({ status: "cross_validation", done: ++done, total });
    }
  }
  const result = scores.map(({ penalty, right, loss }) => ({
    penalty,
    accuracy: right / rows.count,
    loss: loss / rows.count,
  }));
  return result.reverse();
}

function stratify(classes: Int32Array, labels: readonly string[], wanted: number) {
  const counts = new Int32Array(labels.length);
  const nth = classes.map((c) => {
    const before = counts[c] as number;
    counts[c] = before + 1;
    return before;
  });
  const single = counts.findIndex((count) => count < 2);
  if (single >= 0) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `penalty: "auto" holds out images to evaluate on, so every label needs at least two, but ${JSON.stringify(labels[single])} ` +
        "has one; add another image, or set a penalty.",
      { details: { label: labels[single] } },
    );
  }
  const folds = Math.min(wanted, Math.min(...counts));
  return { fold_of: nth.map((n) => n % folds), folds };
}

/** The rows for which `wanted` is true. */
export function select(
  { values, size, count }: Rows,
  classes: Int32Array,
  wanted: (i: number) => boolean,
): { rows: Rows; classes: Int32Array } {
  const chosen = Array.from({ length: count }, (_, i) => i).filter(wanted);
  const out = new Float64Array(chosen.length * size);
  for (const [to, from] of chosen.entries())
    out.set(values.subarray(from * size, (from + 1) * size), to * size);
  return {
    rows: { values: out, count: chosen.length, size },
    classes: Int32Array.from(chosen, (i) => classes[i] as number),
  };
}

function judge(solution: Solution, { values, count, size }: Rows, classes: Int32Array) {
  let right = 0;
  let loss = 0;
  for (let i = 0; i < count; i++) {
    const scores = probabilities(solution, values.subarray(i * size, (i + 1) * size));
    const label = classes[i] as number;
    if (argmax(scores) === label) right++;
    loss -= Math.log(Math.max(scores[label] as number, Number.MIN_VALUE));
  }
  return { right, loss };
}

/** A row's class probabilities. */
export function probabilities({ weights, bias }: Solution, row: Float64Array): Float64Array {
  const size = row.length;
  const logits = bias.map((start, c) => {
    let sum = start;
    for (let k = 0; k < size; k++) sum += (weights[c * size + k] as number) * (row[k] as number);
    return sum;
  });
  return softmax(logits);
}
