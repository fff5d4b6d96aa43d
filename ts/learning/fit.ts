import { Pacer } from "../engine/pacer.ts";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { cross_validate, type PenaltyScore } from "./cross_validation.ts";
import type { ProductEngine } from "./engine_products.ts";
import { type Example, labels_of } from "./features.ts";
import {
  type CentroidPlan,
  default_penalty,
  type FewShotMethod,
  type FitOptions,
  type FitPlan,
  type LogisticPlan,
} from "./fit_options.ts";
import { type Head, LinearHead, NeighborHead, predict } from "./heads.ts";
import {
  type Design,
  fit_logistic_regression,
  make_design,
  type Rows,
  type Solution,
  to_features,
} from "./logistic_regression.ts";

/** The results of a fit. */
export interface FitReport {
  method: FewShotMethod;
  /** In the order of the scores. */
  labels: readonly string[];
  /** The number of training images. */
  images: number;
  /**
   * The share of them that the head classifies correctly; of up to 500 of them, evenly spread, for k-NN, which compares
   * each with all.
   */
  train_accuracy: number;
  /** Logistic regression: λ, given or chosen. */
  penalty?: number;
  intercept?: boolean;
  /** The objective at the end. */
  loss?: number;
  /** Newton steps. */
  iterations?: number;
  /** The gradient's norm at the end, over its norm at weights of zero. */
  gradient?: number;
  /** Whether `gradient` fell below the tolerance. */
  converged?: boolean;
  /** Where cross-validation chose the penalty: the results of each penalty on held-out images. */
  cross_validation?: PenaltyScore[];
}

/** Examples in the form that the solver needs. */
export interface Problem {
  labels: string[];
  /** The label of each example, as its index. */
  classes: Int32Array;
  features: Rows;
}

export function make_problem(examples: readonly Example[]): Problem {
  const labels = labels_of(examples);
  const index = new Map(labels.map((label, i) => [label, i]));
  const size = examples[0]?.feature.length ?? 0;
  const values = new Float64Array(examples.length * size);
  for (const [i, { feature }] of examples.entries()) values.set(feature, i * size);
  return {
    labels,
    classes: Int32Array.from(examples, ({ label }) => index.get(label) as number),
    features: { values, count: examples.length, size },
  };
}

export interface RunOptions extends Pick<FitOptions, "signal" | "progress_callback"> {
  /** The model's, for the products of large problems. */
  engine?: ProductEngine | undefined;
}

export interface Fitted {
  head: Head;
  report: FitReport;
}

/**
 * Fits a head to examples.
 * @throws VitMsnError INVALID_ARGUMENT with fewer than two labels; ABORTED.
 */
export async function fit_head(
  examples: readonly Example[],
  plan: FitPlan,
  options: RunOptions,
): Promise<Fitted> {
  const problem = make_problem(examples);
  check_labels(problem.labels);
  const { head, details } = await fit_plan(problem, plan, options);
  const train_accuracy = await accuracy(head, examples, new Pacer(options.signal, "Fitting"));
  const report: FitReport = {
    method: plan.method,
    labels: problem.labels,
    images: examples.length,
    train_accuracy,
    ...details,
  };
  return { head, report };
}

/** The most examples that k-NN classifies for its accuracy: the time of a fit grows with the examples, not their square. */
const MAX_CLASSIFIED = 500;

async function accuracy(head: Head, examples: readonly Example[], pacer: Pacer): Promise<number> {
  const { length } = examples;
  const total = head instanceof NeighborHead ? Math.min(length, MAX_CLASSIFIED) : length;
  let right = 0;
  for (let i = 0; i < total; i++) {
    const { feature, label } = examples[Math.floor((i * length) / total)] as Example;
    if (predict(head, feature) === label) right++;
    await pacer.step();
  }
  return right / total;
}

export function check_labels(labels: readonly string[]): void {
  if (labels.length >= 2) return;
  const found = labels.length === 0 ? "there are none yet" : `there is only ${JSON.stringify(labels[0])}`;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `A fit needs images of at least two labels, but ${found}; call add(label, images) first.`,
  );
}

/** Fits a head, without classifying the examples. */
export async function fit_plan(
  problem: Problem,
  plan: FitPlan,
  options: RunOptions,
): Promise<{ head: Head; details: Partial<FitReport> }> {
  switch (plan.method) {
    case "logistic_regression":
      return fit_logistic(problem, plan, options);
    case "nearest_centroid":
      return { head: fit_centroids(problem, plan), details: {} };
    case "knn": {
      const { labels, classes, features } = problem;
      const { k, temperature, weights } = plan;
      const settings = { k: Math.min(k, features.count), temperature, weights };
      return {
        head: new NeighborHead(labels, Float32Array.from(features.values), classes, settings),
        details: {},
      };
    }
  }
}

async function fit_logistic(
  problem: Problem,
  plan: LogisticPlan,
  { signal, progress_callback, engine }: RunOptions,
): Promise<{ head: LinearHead; details: Partial<FitReport> }> {
  const { labels, classes, features } = problem;
  const pacer = new Pacer(signal, "Fitting");
  const design = make_design(features);
  const wanted = plan.penalty ?? default_penalty(labels, classes);
  const cross_validation =
    wanted === "auto"
      ? await cross_validate(design, classes, labels, plan, { pacer, engine, progress_callback })
      : undefined;
  const penalty = cross_validation ? best_penalty(cross_validation) : (wanted as number);
  const { intercept, max_iterations: total } = plan;
  const solution = await fit_logistic_regression(design.rows, classes, labels.length, {
    ...plan,
    penalty,
    pacer,
    engine,
    on_iteration: (done) => progress_callback?.({ status: "fit", done, total }),
  });
  if (!solution.converged) warn_of(solution, plan);
  const { loss, iterations, gradient, converged } = solution;
  const details = { penalty, intercept, loss, iterations, gradient, converged };
  const head = linear_head(labels, solution, design);
  return { head, details: cross_validation ? { ...details, cross_validation } : details };
}

function warn_of({ iterations, gradient }: Solution, { tolerance }: LogisticPlan): void {
  env.warn(
    `Logistic regression stopped after ${iterations} steps with a relative gradient of ${gradient.toExponential(1)}, ` +
      `above the tolerance ${tolerance}; raise max_iterations, tolerance or penalty.`,
  );
}

/** The head's values are float32, so that saving loses nothing. */
export function linear_head(labels: readonly string[], solution: Solution, design: Design): LinearHead {
  const weight = Float32Array.from(to_features(solution.weights, design));
  return new LinearHead(labels, weight, Float32Array.from(solution.bias));
}

/** The penalty with the smallest mean loss on held-out images; among equals the stronger one. */
function best_penalty(scores: readonly PenaltyScore[]): number {
  const best = scores.reduce((a, b) =>
    b.loss < a.loss || (b.loss === a.loss && b.penalty > a.penalty) ? b : a,
  );
  return best.penalty;
}

/** -‖f - m‖²/2T = (f·m - ‖m‖²/2)/T and a term that all classes share: a linear layer. */
function fit_centroids({ labels, classes, features }: Problem, plan: CentroidPlan): LinearHead {
  const { values, count, size } = features;
  const sums = new Float64Array(labels.length * size);
  const counts = new Float64Array(labels.length);
  let square = 0;
  for (let i = 0; i < count; i++) {
    const c = classes[i] as number;
    counts[c] = (counts[c] as number) + 1;
    for (let k = 0; k < size; k++) {
      const value = values[i * size + k] as number;
      sums[c * size + k] = (sums[c * size + k] as number) + value;
      square += (value * value) / count;
    }
  }
  const temperature = plan.temperature ?? (square > 0 ? 0.1 * square : 1);
  const means = sums.map((sum, i) => sum / (counts[Math.floor(i / size)] as number));
  const weight = Float32Array.from(means, (mean) => mean / temperature);
  const bias = Float32Array.from(labels, (_, c) => {
    const mean = means.subarray(c * size, (c + 1) * size);
    return -mean.reduce((sum, value) => sum + value * value, 0) / (2 * temperature);
  });
  return new LinearHead(labels, weight, bias);
}
