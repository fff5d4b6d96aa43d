import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import { numbers_of, type Tensor } from "../tensor.ts";

/** A model's predictions, for compute_metrics. */
export interface EvalPrediction {
  /** float32 [N, num_labels]: logits. */
  predictions: Tensor<"float32">;
  /** Class indices [N], or targets. */
  label_ids: Tensor;
}

/** Metrics by name, without prefix. */
export type ComputeMetrics = (
  prediction: EvalPrediction,
) => Record<string, number> | Promise<Record<string, number>>;

const IGNORED = -100;

/** The index of each row's largest value; the first among equals. */
export function argmax_rows(values: ArrayLike<number>, width: number): number[] {
  return Array.from({ length: values.length / width }, (_, row) => {
    let best = 0;
    for (let i = 1; i < width; i++) {
      if ((values[row * width + i] as number) > (values[row * width + best] as number)) best = i;
    }
    return best;
  });
}

/** How many rows of logits [N, num_labels] are largest at their label; labels of -100 are ignored. */
export function count_correct(
  logits: ArrayLike<number>,
  labels: Tensor,
  num_labels: number,
): { correct: number; counted: number } {
  const classes = numbers_of(labels);
  const best = argmax_rows(logits, num_labels);
  const counted = classes.filter((label) => label !== IGNORED).length;
  return { correct: classes.filter((label, i) => label === best[i]).length, counted };
}

/**
 * The default compute_metrics, by the config's problem type: the accuracy of one class for each image; of several, as
 * multi_label_metrics; of numbers, as regression_metrics.
 */
export function default_metrics(config: ViTMSNConfig): ComputeMetrics {
  return (prediction): Record<string, number> => {
    switch (config.problem_type) {
      case "single_label_classification": {
        const { predictions, label_ids } = prediction;
        const { correct, counted } = count_correct(predictions.data, label_ids, config.num_labels);
        return { accuracy: correct / Math.max(1, counted) };
      }
      case "multi_label_classification":
        return multi_label_metrics(prediction);
      case "regression":
        return regression_metrics(prediction);
      default:
        return {};
    }
  };
}

/** How well one class is recognised. */
export interface ClassMetrics {
  /** The share of the images assigned to the class that belong to it; 0 for none. */
  precision: number;
  /** The share of the class's images that are assigned to it; 0 for none. */
  recall: number;
  /** The harmonic mean of both. */
  f1: number;
  /** The number of the class's images. */
  support: number;
}

/** Precision, recall and F1 of each class, in the order of their ids. Labels of -100 are ignored. */
export function class_metrics(prediction: EvalPrediction): ClassMetrics[] {
  const matrix = confusion_matrix(prediction);
  return matrix.map((row, label) => {
    const assigned = matrix.reduce((sum, other) => sum + (other[label] as number), 0);
    const support = row.reduce((a, b) => a + b, 0);
    return rates(row[label] as number, assigned, support);
  });
}

/**
 * compute_metrics for one class for each image: accuracy, and precision, recall and F1 as means over the classes that
 * occur among labels or predictions (scikit-learn's average="macro").
 */
export function classification_metrics(prediction: EvalPrediction): Record<string, number> {
  const { predictions, label_ids } = prediction;
  const { correct, counted } = count_correct(predictions.data, label_ids, predictions.dims[1] as number);
  const matrix = confusion_matrix(prediction);
  const occurs = matrix.map((row, label) => row.some(Boolean) || matrix.some((other) => other[label] !== 0));
  const classes = class_metrics(prediction).filter((_, label) => occurs[label]);
  return {
    accuracy: correct / Math.max(1, counted),
    precision: mean(classes.map(({ precision }) => precision)),
    recall: mean(classes.map(({ recall }) => recall)),
    f1: mean(classes.map(({ f1 }) => f1)),
  };
}

/**
 * compute_metrics for several classes for each image: F1 of the classes whose logit is above 0, over all classes
 * together (f1_micro) and as their mean (f1_macro), and the mean average precision over classes with an image.
 */
export function multi_label_metrics({ predictions, label_ids }: EvalPrediction): Record<string, number> {
  const [rows, classes] = predictions.dims as [number, number];
  const targets = numbers_of(label_ids);
  const column = <T>(values: ArrayLike<T>, label: number) =>
    Array.from({ length: rows }, (_, row) => values[row * classes + label] as T);
  const counts = Array.from({ length: classes }, (_, label) => {
    const [scores, wanted] = [column(predictions.data, label), column(targets, label)];
    const hits = scores.filter((score, i) => score > 0 && wanted[i] === 1).length;
    return {
      hits,
      assigned: scores.filter((score) => score > 0).length,
      support: wanted.filter((x) => x === 1).length,
      average_precision: average_precision(scores, wanted),
    };
  });
  const total = (name: "hits" | "assigned" | "support") => counts.reduce((sum, one) => sum + one[name], 0);
  return {
    f1_micro: rates(total("hits"), total("assigned"), total("support")).f1,
    f1_macro: mean(counts.map(({ hits, assigned, support }) => rates(hits, assigned, support).f1)),
    mean_average_precision: mean(
      counts.filter(({ support }) => support > 0).map((one) => one.average_precision),
    ),
  };
}

/** compute_metrics for regression: the mean absolute error, and R² as the mean over the outputs. */
export function regression_metrics({ predictions, label_ids }: EvalPrediction): Record<string, number> {
  const [rows, outputs] = predictions.dims as [number, number];
  const wanted = numbers_of(label_ids);
  const errors = wanted.map((target, i) => (predictions.data[i] as number) - target);
  const scores = Array.from({ length: outputs }, (_, output) => {
    const own = (_: unknown, i: number) => i % outputs === output;
    const targets = wanted.filter(own);
    const centre = mean(targets);
    const residual = errors.filter(own).reduce((sum, error) => sum + error ** 2, 0);
    const variance = targets.reduce((sum, target) => sum + (target - centre) ** 2, 0);
    if (variance === 0) return residual === 0 ? 1 : 0;
    return 1 - residual / variance;
  });
  const absolute = errors.reduce((sum, error) => sum + Math.abs(error), 0);
  return { mae: absolute / Math.max(1, rows * outputs), r2: mean(scores) };
}

function rates(hits: number, assigned: number, support: number): ClassMetrics {
  return {
    precision: assigned > 0 ? hits / assigned : 0,
    recall: support > 0 ? hits / support : 0,
    f1: assigned + support > 0 ? (2 * hits) / (assigned + support) : 0,
    support,
  };
}

/** Σ (recall − previous recall) · precision over falling thresholds; equal scores share a threshold. */
function average_precision(scores: readonly number[], wanted: readonly number[]): number {
  const order = scores.map((_, i) => i).sort((a, b) => (scores[b] as number) - (scores[a] as number));
  const support = wanted.filter((x) => x === 1).length;
  let [hits, hits_before, sum] = [0, 0, 0];
  for (const [place, i] of order.entries()) {
    if (wanted[i] === 1) hits++;
    const next = order[place + 1];
    if (next !== undefined && scores[next] === scores[i]) continue;
    sum += ((hits - hits_before) / Math.max(1, support)) * (hits / (place + 1));
    hits_before = hits;
  }
  return sum;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((a, b) => a + b, 0) / values.length;
}

/** Counts by [true class][predicted class]. Labels of -100 are ignored. */
export function confusion_matrix({ predictions, label_ids }: EvalPrediction): number[][] {
  const num_labels = predictions.dims[1] as number;
  const matrix = Array.from({ length: num_labels }, () => new Array<number>(num_labels).fill(0));
  const best = argmax_rows(predictions.data, num_labels);
  numbers_of(label_ids).forEach((label, i) => {
    const row = matrix[label];
    if (row !== undefined) row[best[i] as number] = (row[best[i] as number] as number) + 1;
  });
  return matrix;
}
