import type { Engine, Scope, TensorHandle } from "../engine/engine.ts";
import { invalid_argument as invalid } from "../errors.ts";
import { numbers_of, Tensor } from "../tensor.ts";
import type { ProblemType, ViTMSNConfig } from "./configuration_vit_msn.ts";

/** Class indices [batch], or float targets [batch] or [batch, num_labels]; plain arrays of integers are indices. */
export type Labels = Tensor | readonly number[] | readonly (readonly number[])[];

/** The index that cross-entropy ignores, like PyTorch's ignore_index. */
const IGNORE_INDEX = -100;

/**
 * The loss of logits [batch, num_labels], like the reference's ForSequenceClassificationLoss: mean squared error for
 * regression, cross-entropy for one label per image, binary cross-entropy with logits for several. As in the reference,
 * an unset config.problem_type is chosen from num_labels and the labels' type, and written to the config.
 * @throws VitMsnError INVALID_ARGUMENT if labels don't fit the problem.
 */
export function compute_loss(
  engine: Engine,
  scope: Scope,
  logits: TensorHandle,
  labels: Labels,
  config: ViTMSNConfig,
): TensorHandle {
  const target = as_tensor(labels);
  const batch = engine.dims(logits)[0] as number;
  switch (problem_type_of(target, config)) {
    case "single_label_classification":
      return scope.use(engine.cross_entropy(logits, class_indices(target, batch, config.num_labels)));
    case "regression":
      return scope.use(engine.mse_loss(logits, float_target(engine, scope, target, batch, config)));
    case "multi_label_classification":
      return scope.use(engine.bce_with_logits(logits, float_target(engine, scope, target, batch, config)));
  }
}

/** The problem type, from the config or else from the labels; the config then records it. */
export function problem_type_of(labels: Labels, config: ViTMSNConfig): ProblemType {
  config.problem_type ??= infer_problem_type(config.num_labels, as_tensor(labels));
  return config.problem_type;
}

function infer_problem_type(num_labels: number, labels: Tensor): ProblemType {
  if (num_labels === 1) return "regression";
  return labels.type === "int64" || labels.type === "int32"
    ? "single_label_classification"
    : "multi_label_classification";
}

function as_tensor(labels: Labels): Tensor {
  if (labels instanceof Tensor) return labels;
  const rows = labels.filter((row): row is readonly number[] => Array.isArray(row));
  if (rows.length === 0) {
    const whole = labels.every((x) => Number.isInteger(x));
    return new Tensor(whole ? "int32" : "float32", labels as number[], [labels.length]);
  }
  return new Tensor("float32", rows.flat(), [rows.length, rows[0]?.length ?? 0]);
}

/** Checks the classes of a batch. @throws VitMsnError INVALID_ARGUMENT. */
export function class_indices(given: Labels, batch: number, num_labels: number): Int32Array {
  const labels = as_tensor(given);
  if (labels.size !== batch) {
    throw invalid(
      `labels must hold one class index per image (${batch}), got [${labels.dims.join(", ")}].`,
      "labels",
    );
  }
  const values = numbers_of(labels);
  const sound = (x: number) => x === IGNORE_INDEX || (Number.isInteger(x) && x >= 0 && x < num_labels);
  const bad = values.find((x) => !sound(x));
  if (bad !== undefined) {
    throw invalid(
      `labels holds ${bad}; a class index is an integer from 0 to ${num_labels - 1}, or ${IGNORE_INDEX} to ignore an image.`,
      "labels",
    );
  }
  return Int32Array.from(values);
}

function float_target(
  engine: Engine,
  scope: Scope,
  labels: Tensor,
  batch: number,
  config: ViTMSNConfig,
): TensorHandle {
  const dims = [batch, config.num_labels];
  // With one label, [batch] is accepted, as with the reference's squeeze().
  const fits = config.num_labels === 1 ? labels.size === batch : labels.dims.join() === dims.join();
  if (!fits) {
    throw invalid(
      `labels of a ${config.problem_type} model must have shape [${dims.join(", ")}], got [${labels.dims.join(", ")}].`,
      "labels",
    );
  }
  const values = Float32Array.from(numbers_of(labels));
  if (!values.every(Number.isFinite)) throw invalid("labels must hold finite numbers.", "labels");
  return scope.use(engine.tensor(values, dims));
}
