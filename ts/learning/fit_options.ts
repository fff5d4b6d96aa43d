import { VitMsnError } from "../errors.ts";
import type { NeighborSettings, NeighborWeights } from "./heads.ts";
import { MSN_PENALTIES, type MsnPenalty, PENALTY_GRID } from "./penalties.ts";

export const FEW_SHOT_METHODS = ["logistic_regression", "nearest_centroid", "knn"] as const;
export type FewShotMethod = (typeof FEW_SHOT_METHODS)[number];

/** Up to this many pictures a class, on average, the penalty defaults to "few", above to "percent". */
const FEW_PICTURES = 5;

/** How fitting gets on. */
export interface LearningProgress {
  /**
   * "features": pictures through the backbone; "cross_validation" and "leave_one_out": fits; "fit": Newton steps,
   * whose `total`, the most that are allowed, is rarely reached.
   */
  status: "features" | "cross_validation" | "fit" | "leave_one_out";
  done: number;
  total: number;
}
export type LearningProgressCallback = (progress: LearningProgress) => void;

export interface FitOptions {
  /**
   * "logistic_regression" (default), as the MSN paper evaluates; "nearest_centroid": softmax(-‖f - mean‖² / 2T);
   * "knn": the k nearest by cosine, weighted by exp(cosine / T).
   */
  method?: FewShotMethod;
  /**
   * Logistic regression: λ of (1/n) Σ cross-entropy + (λ/2n) ‖W‖², a name of MSN_PENALTIES, or "auto" (the best of `penalties`
   * by cross-validation). Default "few" up to 5 pictures a class, on average, else "percent".
   */
  penalty?: number | MsnPenalty | "auto";
  /** Logistic regression: whether each class has a bias, which isn't penalised; default false, as in MSN. */
  intercept?: boolean;
  /** For `penalty: "auto"`: what to choose from; default PENALTY_GRID. */
  penalties?: readonly number[];
  /** For `penalty: "auto"`: parts of the cross-validation; default 5, at most the pictures of the smallest class. */
  folds?: number;
  /** Logistic regression: stops where the gradient is this share of the one at weights of zero; default 1e-6. */
  tolerance?: number;
  /** Logistic regression: Newton steps at most; default 100. */
  max_iterations?: number;
  /** k-NN: how many neighbours; default 20, at most all. */
  k?: number;
  /** T of k-NN (default 0.07, DINO's) or of nearest centroid (default a tenth of the features' mean square length). */
  temperature?: number;
  /** k-NN: "softmax" (default) or "uniform". */
  weights?: NeighborWeights;
  signal?: AbortSignal;
  progress_callback?: LearningProgressCallback;
}

/** FitOptions, checked; what depends on the pictures is open. */
export type FitPlan = LogisticPlan | CentroidPlan | NeighborPlan;

export interface LogisticPlan {
  method: "logistic_regression";
  /** undefined: by the pictures a class. */
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

const OPTIONS_OF: Record<FewShotMethod, readonly (keyof FitOptions)[]> = {
  logistic_regression: ["penalty", "intercept", "penalties", "folds", "tolerance", "max_iterations"],
  nearest_centroid: ["temperature"],
  knn: ["k", "temperature", "weights"],
};
const COMMON_OPTIONS: readonly string[] = ["method", "signal", "progress_callback"];

/** @throws VitMsnError INVALID_ARGUMENT for an unknown method and for options that are wrong or another method's. */
export function plan_fit(options: FitOptions): FitPlan {
  const method = options.method ?? "logistic_regression";
  if (!FEW_SHOT_METHODS.includes(method))
    throw invalid(`method must be one of ${FEW_SHOT_METHODS.join(", ")}, got ${show(method)}.`);
  refuse_others(method, options);
  switch (method) {
    case "logistic_regression":
      return plan_logistic(options);
    case "nearest_centroid":
      return { method, temperature: positive("temperature", options.temperature) };
    case "knn": {
      const { weights = "softmax" } = options;
      if (weights !== "softmax" && weights !== "uniform")
        throw invalid(`weights must be "softmax" or "uniform", got ${show(weights)}.`);
      const temperature = positive("temperature", options.temperature) ?? 0.07;
      return { method, k: count("k", options.k, 20, 1), temperature, weights };
    }
  }
}

function refuse_others(method: FewShotMethod, options: FitOptions): void {
  const known = [...COMMON_OPTIONS, ...OPTIONS_OF[method]];
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  const other = given.find(([name]) => !known.includes(name));
  if (other !== undefined)
    throw invalid(`"${other[0]}" is no option of ${method}, which has: ${OPTIONS_OF[method].join(", ")}.`);
}

function plan_logistic(options: FitOptions): LogisticPlan {
  const { intercept = false, penalties = PENALTY_GRID } = options;
  if (typeof intercept !== "boolean")
    throw invalid(`intercept must be true or false, got ${show(intercept)}.`);
  if (!Array.isArray(penalties) || penalties.length === 0)
    throw invalid("penalties must be a list of numbers to choose from.");
  return {
    method: "logistic_regression",
    penalty: plan_penalty(options.penalty),
    intercept,
    penalties: penalties.map((value) => positive("penalties", value) as number),
    folds: count("folds", options.folds, 5, 2),
    tolerance: positive("tolerance", options.tolerance) ?? 1e-6,
    max_iterations: count("max_iterations", options.max_iterations, 100, 1),
  };
}

function plan_penalty(penalty: FitOptions["penalty"]): LogisticPlan["penalty"] {
  if (typeof penalty !== "string" || penalty === "auto") {
    return penalty === "auto" ? penalty : positive("penalty", penalty);
  }
  if (Object.hasOwn(MSN_PENALTIES, penalty)) return MSN_PENALTIES[penalty];
  const names = Object.keys(MSN_PENALTIES).join('", "');
  throw invalid(`penalty must be a number above 0, "auto", or one of "${names}"; got ${show(penalty)}.`);
}

/** The penalty where none was asked for. */
export function default_penalty(pictures: number, classes: number): number {
  return pictures / classes <= FEW_PICTURES ? MSN_PENALTIES.few : MSN_PENALTIES.percent;
}

function positive(name: string, value: number | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "number" && value > 0 && value < Infinity) return value;
  throw invalid(`${name} must be a finite number above 0, got ${show(value)}.`);
}

function count(name: string, value: number | undefined, fallback: number, least: number): number {
  if (value === undefined) return fallback;
  if (Number.isSafeInteger(value) && value >= least) return value;
  throw invalid(`${name} must be a whole number from ${least} on, got ${show(value)}.`);
}

function show(value: unknown): string {
  return typeof value === "number" ? String(value) : (JSON.stringify(value) ?? String(value)).slice(0, 80);
}

function invalid(message: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message);
}
