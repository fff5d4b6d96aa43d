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

/** The default compute_metrics: the accuracy, if each image has one class. */
export function default_metrics(config: ViTMSNConfig): ComputeMetrics {
  return ({ predictions, label_ids }): Record<string, number> => {
    if (config.problem_type !== "single_label_classification") return {};
    const { correct, counted } = count_correct(predictions.data, label_ids, config.num_labels);
    return { accuracy: correct / Math.max(1, counted) };
  };
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
