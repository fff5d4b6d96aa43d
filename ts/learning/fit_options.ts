import { show } from "../errors.ts";
import {
  abort_signal,
  callable,
  check_option,
  check_options,
  flag,
  is_record,
  type Rule,
  type Rules,
} from "../options.ts";
import type { NeighborSettings, NeighborWeights } from "./heads.ts";
import { MSN_PENALTIES, type MsnPenalty, PENALTY_GRID } from "./penalties.ts";

export const FEW_SHOT_METHODS = ["logistic_regression", "nearest_centroid", "knn"] as const;
export type FewShotMethod = (typeof FEW_SHOT_METHODS)[number];

/** The progress of fitting. */
export interface LearningProgress {
  /**
   * "features": images that passed the backbone; "cross_validation" and "leave_one_out": fits; "fit": Newton
   * steps, whose `total` is the maximum, which is rarely reached.
   */
  status: "features" | "cross_validation" | "fit" | "leave_one_out";
  done: number;
  total: number;
}
export type LearningProgressCallback = (progress: LearningProgress) => void;

export interface FitOptions {
  /**
   * "logistic_regression" (default), as the MSN paper evaluates; "nearest_centroid":
   * softmax(-‖f - mean‖² / 2T); "knn": the k nearest by cosine, weighted by exp(cosine / T).
   */
  method?: FewShotMethod;
  /**
   * Logistic regression: λ of (1/n) Σ cross-entropy + (λ/2n) ‖W‖², a name of MSN_PENALTIES, or "auto" (the
   * best of `penalties` by cross-validation). Default "auto" if every label has two images or more, else "few".
   */
  penalty?: number | MsnPenalty | "auto";
  /** Logistic regression: whether each class has a bias, which isn't penalised; default false, as in MSN. */
  intercept?: boolean;
  /** For `penalty: "auto"`: the candidates; default PENALTY_GRID. */
  penalties?: readonly number[];
  /**
   * For `penalty: "auto"`: the folds of the cross-validation; default 5, at most the number of images of the
   * smallest class.
   */
  folds?: number;
  /**
   * Logistic regression: stops when the gradient is at most this share of its value at zero weights; default
   * 1e-6.
   */
  tolerance?: number;
  /** Logistic regression: the maximum number of Newton steps; default 100. */
  max_iterations?: number;
  /** k-NN: the number of neighbours; default 20, at most all. */
  k?: number;
  /**
   * T of k-NN (default 0.07, DINO's) or of nearest centroid (default a tenth of the features' mean square
   * length).
   */
  temperature?: number;
  /** k-NN: "softmax" (default) or "uniform". */
  weights?: NeighborWeights;
  signal?: AbortSignal;
  progress_callback?: LearningProgressCallback;
}

/** The checked FitOptions, before defaults that depend on the images. */
export type FitPlan = LogisticPlan | CentroidPlan | NeighborPlan;

export interface LogisticPlan {
  method: "logistic_regression";
  /** undefined: chosen by the number of images of each label. */
  penalty: number | "auto" | undefined;
  intercept: boolean;
  penalties: readonly number[];
  folds: number;
  tolerance: number;
  max_iterations: number;
}

export interface CentroidPlan {
  method: "nearest_centroid";
  temperature: number | undefined;
}

export interface NeighborPlan extends NeighborSettings {
  method: "knn";
}

const is_positive = (value: unknown) => Number.isFinite(value) && (value as number) > 0;
const positive: Rule = ["a finite number above 0", is_positive];
const at_least = (min: number): Rule => [
  `an integer of ${min} or more`,
  (value) => Number.isSafeInteger(value) && (value as number) >= min,
];
const COMMON_RULES: Rules = {
  method: FEW_SHOT_METHODS,
  signal: abort_signal,
  progress_callback: callable,
};
const RULES: Record<FewShotMethod, Rules> = {
  logistic_regression: {
    ...COMMON_RULES,
    penalty: [
      `a number above 0, "auto", ${Object.keys(MSN_PENALTIES).map(show).join(", ")}`,
      (value) => value === "auto" || is_penalty(value) || is_positive(value),
    ],
    intercept: flag,
    penalties: [
      "a list of numbers above 0",
      (values) => Array.isArray(values) && values.length > 0 && values.every(is_positive),
    ],
    folds: at_least(2),
    tolerance: positive,
    max_iterations: at_least(1),
  },
  nearest_centroid: { ...COMMON_RULES, temperature: positive },
  knn: { ...COMMON_RULES, k: at_least(1), temperature: positive, weights: ["softmax", "uniform"] },
};

function is_penalty(name: unknown): name is MsnPenalty {
  return typeof name === "string" && Object.hasOwn(MSN_PENALTIES, name);
}

/**
 * @throws VitMsnError INVALID_ARGUMENT for an unknown method, wrong options, and options of another method.
 */
export function plan_fit(options: FitOptions): FitPlan {
  const { method = "logistic_regression" }: FitOptions = is_record(options) ? options : {};
  check_option("fit", "method", method, COMMON_RULES);
  check_options(`fit by ${method}`, options, RULES[method]);
  switch (method) {
    case "logistic_regression":
      return plan_logistic(options);
    case "nearest_centroid":
      return { method, temperature: options.temperature };
    case "knn": {
      const { k = 20, temperature = 0.07, weights = "softmax" } = options;
      return { method, k, temperature, weights };
    }
  }
}

function plan_logistic(options: FitOptions): LogisticPlan {
  const { penalty, intercept = false, penalties = PENALTY_GRID } = options;
  const { folds = 5, tolerance = 1e-6, max_iterations = 100 } = options;
  return {
    method: "logistic_regression",
    penalty: is_penalty(penalty) ? MSN_PENALTIES[penalty] : penalty,
    intercept,
    penalties,
    folds,
    tolerance,
    max_iterations,
  };
}

/** The penalty if none was set: cross-validation holds out an image of each label. */
export function default_penalty(labels: readonly string[], classes: Int32Array): number | "auto" {
  const counts = labels.map((_, label) => classes.filter((other) => other === label).length);
  return Math.min(...counts) < 2 ? MSN_PENALTIES.few : "auto";
}
