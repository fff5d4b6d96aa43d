import { invalid_argument as invalid, VitMsnError } from "../errors.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import { class_indices, problem_type_of } from "../model/losses.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { check_options, type Rules } from "../options.ts";
import { numbers_of, Tensor } from "../tensor.ts";
import type { Batch } from "./data/collate.ts";

/** A loss, and its gradient with respect to the logits. */
export interface LossOfLogits {
  loss: number;
  /** float32 [batch, num_labels]. */
  gradient: Tensor<"float32">;
}

/** What a loss is computed from. */
export interface LossInputs {
  /** float32 [batch, num_labels]. */
  logits: Tensor<"float32">;
  /** The batch's labels, if it has any. */
  labels: Tensor | undefined;
  /** The whole batch, with whatever else the data collator put into it. */
  batch: Batch;
  signal: AbortSignal | undefined;
}

/** Computes the mean loss of a batch from its logits. */
export type ComputeLoss = (inputs: LossInputs) => LossOfLogits | Promise<LossOfLogits>;

export interface CrossEntropyOptions {
  /** One for each class; default 1. */
  class_weights?: readonly number[] | undefined;
  /** From 0 to 1; default 0. */
  label_smoothing?: number;
}

export interface DistillationOptions {
  /** A model with the same classes; it isn't trained. */
  teacher: ViTMSNForImageClassification;
  /** Of both softmaxes; default 5. */
  temperature?: number;
  /** The weight of the distillation loss, from 0 to 1; that of the labels' loss is 1 less it. Default 0.5. */
  lambda_param?: number;
}

const IGNORED = -100;

/**
 * Cross-entropy of class indices [batch] or of soft labels, float32 [batch, num_labels]; torch.nn.CrossEntropyLoss with
 * its `weight` and `label_smoothing`. With class indices, the mean is weighted by the weights of the images' classes,
 * and labels of -100 are ignored.
 * @throws VitMsnError INVALID_ARGUMENT if the labels or class_weights don't fit the logits.
 */
export function cross_entropy_loss(
  logits: Tensor<"float32">,
  labels: Tensor,
  { class_weights, label_smoothing = 0 }: CrossEntropyOptions = {},
): LossOfLogits {
  const [rows, classes] = logits.dims as [number, number];
  const weights = class_weights ?? new Array<number>(classes).fill(1);
  if (weights.length !== classes) {
    throw invalid(
      `class_weights must hold ${classes} numbers, one for each class, got ${weights.length}.`,
      "class_weights",
    );
  }
  const targets = is_soft(labels) ? soft_targets(labels, rows, classes) : hard_targets(labels, rows, classes);
  const total = is_soft(labels) ? rows : total_weight(labels, weights);
  const gradient = new Float32Array(logits.size);
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const log_probs = log_softmax(logits.data.subarray(row * classes, (row + 1) * classes));
    const target = targets.subarray(row * classes, (row + 1) * classes);
    if (target.every((share) => share === 0)) continue;
    const shares = target.map((share, c) => {
      const smoothed = (1 - label_smoothing) * share + label_smoothing / classes;
      return (smoothed * (weights[c] as number)) / total;
    });
    const whole = shares.reduce((a, b) => a + b, 0);
    for (let c = 0; c < classes; c++) {
      const log_prob = log_probs[c] as number;
      sum -= (shares[c] as number) * log_prob;
      gradient[row * classes + c] = whole * Math.exp(log_prob) - (shares[c] as number);
    }
  }
  return { loss: sum, gradient: new Tensor("float32", gradient, [rows, classes]) };
}

/**
 * Knowledge distillation (Hinton et al., 2015): lambda_param · T² · KL(teacher ‖ student) of probabilities at temperature
 * T, plus (1 − lambda_param) · cross-entropy of the labels, as in transformers' guide for images.
 */
export function distillation_loss(options: DistillationOptions): ComputeLoss {
  check_options("distillation_loss", options, DISTILLATION_RULES);
  const { teacher, temperature = 5, lambda_param = 0.5 } = options;
  return async ({ logits, labels, batch, signal }) => {
    const { pixel_values, interpolate_pos_encoding = false } = batch;
    const wanted = await teacher.forward({
      pixel_values,
      interpolate_pos_encoding,
      ...(signal && { signal }),
    });
    const soft = divergence(logits, wanted.logits, temperature);
    if (labels === undefined || lambda_param === 1) return scaled(soft, lambda_param);
    const hard = scaled(cross_entropy_loss(logits, labels), 1 - lambda_param);
    const { loss, gradient } = scaled(soft, lambda_param);
    for (let i = 0; i < gradient.size; i++)
      gradient.data[i] = (gradient.data[i] as number) + (hard.gradient.data[i] as number);
    return { loss: loss + hard.loss, gradient };
  };
}

const DISTILLATION_RULES: Rules = {
  teacher: [
    "a ViTMSNForImageClassification",
    (value) => typeof (value as { forward?: unknown } | null)?.forward === "function",
  ],
  temperature: ["a number above 0", (value) => Number.isFinite(value) && (value as number) > 0],
  lambda_param: ["a number from 0 to 1", (value) => (value as number) >= 0 && (value as number) <= 1],
};

/** T² · KL(teacher ‖ student), the mean over the batch. */
function divergence(
  student: Tensor<"float32">,
  teacher: Tensor<"float32">,
  temperature: number,
): LossOfLogits {
  const [rows, classes] = student.dims as [number, number];
  if (teacher.dims.join() !== student.dims.join()) {
    throw invalid(
      `The teacher's logits are [${teacher.dims.join(", ")}], the student's [${student.dims.join(", ")}].`,
      "teacher",
    );
  }
  const gradient = new Float32Array(student.size);
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const at = (tensor: Tensor<"float32">) =>
      log_softmax(tensor.data.subarray(row * classes, (row + 1) * classes).map((x) => x / temperature));
    const [own, wanted] = [at(student), at(teacher)];
    for (let c = 0; c < classes; c++) {
      const [q, p] = [own[c] as number, wanted[c] as number];
      sum += Math.exp(p) * (p - q);
      gradient[row * classes + c] = (temperature * (Math.exp(q) - Math.exp(p))) / rows;
    }
  }
  return {
    loss: (temperature ** 2 * sum) / rows,
    gradient: new Tensor("float32", gradient, [rows, classes]),
  };
}

function scaled({ loss, gradient }: LossOfLogits, factor: number): LossOfLogits {
  return {
    loss: factor * loss,
    gradient: new Tensor(
      "float32",
      gradient.data.map((x) => factor * x),
      gradient.dims,
    ),
  };
}

/** What decides how a batch's loss is computed. */
export interface LossSettings {
  config: ViTMSNConfig;
  compute_loss: ComputeLoss | undefined;
  label_smoothing: number;
  class_weights: readonly number[] | undefined;
}

/** A loss that is computed from the logits in JavaScript; undefined if the engine's own applies. */
export function loss_in_javascript(
  { config, compute_loss, label_smoothing, class_weights }: LossSettings,
  labels: Tensor | undefined,
): ComputeLoss | undefined {
  if (compute_loss !== undefined) return compute_loss;
  if (labels === undefined || problem_type_of(labels, config) !== "single_label_classification")
    return undefined;
  if (class_weights === undefined && !is_soft(labels)) return undefined;
  return ({ logits }) => cross_entropy_loss(logits, labels, { class_weights, label_smoothing });
}

/** Calls a loss and checks what it returns. @throws VitMsnError INVALID_ARGUMENT. */
export async function call_loss(compute_loss: ComputeLoss, inputs: LossInputs): Promise<LossOfLogits> {
  const result = await compute_loss(inputs);
  const { loss, gradient } = (result ?? {}) as Partial<LossOfLogits>;
  const fits =
    gradient instanceof Tensor &&
    gradient.type === "float32" &&
    gradient.dims.join() === inputs.logits.dims.join();
  if (typeof loss === "number" && fits) return result;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    "compute_loss must return { loss, gradient }: a number, and a float32 Tensor of the logits' shape " +
      `[${inputs.logits.dims.join(", ")}] with the loss's gradient with respect to them.`,
    { details: { argument: "compute_loss" } },
  );
}

/** Whether labels are probabilities of the classes. */
export function is_soft({ type, dims }: Tensor): boolean {
  return type === "float32" && dims.length === 2;
}

/** The sum of the weights of the images' classes; ignored images have none. */
export function total_weight(labels: Tensor, weights: readonly number[]): number {
  return numbers_of(labels).reduce((sum, label) => sum + (label === IGNORED ? 0 : (weights[label] ?? 0)), 0);
}

function soft_targets(labels: Tensor, rows: number, classes: number): Float64Array {
  const values = Float64Array.from(numbers_of(labels));
  if (labels.dims.join() !== [rows, classes].join() || !values.every((x) => x >= 0 && Number.isFinite(x))) {
    throw invalid(
      `Soft labels must be probabilities [${rows}, ${classes}], numbers of 0 or more; got [${labels.dims.join(", ")}].`,
      "labels",
    );
  }
  return values;
}

/** Rows of zeros for ignored images. */
function hard_targets(labels: Tensor, rows: number, classes: number): Float64Array {
  const targets = new Float64Array(rows * classes);
  for (const [row, label] of class_indices(labels, rows, classes).entries()) {
    if (label !== IGNORED) targets[row * classes + label] = 1;
  }
  return targets;
}

function log_softmax(logits: Float32Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const log_sum = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - max), 0));
  return Float64Array.from(logits, (x) => x - max - log_sum);
}
