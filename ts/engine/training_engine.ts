/**
 * What learning needs of an engine beside inference: the gradient of each op, and the steps of the optimisers. Every
 * `…_backward` takes the gradient of the loss by the op's output, and what the op read, and returns gradients by what it
 * read; none keeps anything. `ts/training/` decides when they run.
 */
import type { Activation, Engine, Grid, LinearHandle, TensorHandle } from "./engine.ts";

/** The gradients of a linear layer's parameters: weight [out_features, in_features], bias [out_features]. */
export interface LinearGradients {
  weight: TensorHandle;
  bias: TensorHandle;
}

/** Which elements are dropped: each with `probability`, decided by `seed`, as the op dropout says. */
export interface Dropout {
  probability: number;
  seed: number;
}

/** The hyper-parameters of one AdamW step. */
export interface AdamWStep {
  learning_rate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Decoupled: the parameter shrinks by learning_rate · weight_decay of itself. */
  weight_decay: number;
  /** Steps done, this one included: 1 for the first. */
  step: number;
  /** What gradients are multiplied by before use, as for clipping. */
  gradient_scale: number;
}

/** The hyper-parameters of one step of SGD, as torch.optim.SGD defines it. */
export interface SgdStep {
  learning_rate: number;
  momentum: number;
  /** Coupled: added to the gradient, times the parameter. */
  weight_decay: number;
  nesterov: boolean;
  /** Whether the momentum buffer is new: the first gradient fills it. */
  first: boolean;
  gradient_scale: number;
}

/** The hyper-parameters of one LARS step (You, Gitman, Ginsburg 2017). */
export interface LarsStep {
  learning_rate: number;
  momentum: number;
  weight_decay: number;
  /** The trust coefficient η. */
  trust_coefficient: number;
  epsilon: number;
  gradient_scale: number;
}

/** An engine that can learn. Gradients and states of optimisers are float32 tensors. */
export interface TrainingEngine extends Engine {
  /** Sets the whole of a floating linear layer from plain float32 tensors, rounded to the dtype it is kept in. */
  set_linear(weights: LinearHandle, weight: TensorHandle, bias?: TensorHandle): void;
  /** The whole weight of a floating linear layer as a plain float32 tensor [out_features, in_features]. */
  linear_weight(weights: LinearHandle): TensorHandle;
  /** The bias of a linear layer as a plain float32 tensor [out_features]. */
  linear_bias(weights: LinearHandle): TensorHandle;

  /** activation(x). */
  activate(x: TensorHandle, activation: Activation): TensorHandle;
  /** grad · activation′(x), x being the activation's input. */
  activate_backward(grad: TensorHandle, x: TensorHandle, activation: Activation): TensorHandle;
  /** grad · weight: the gradient by the input of a linear layer without activation. */
  linear_backward_input(grad: TensorHandle, weights: LinearHandle): TensorHandle;
  /** gradᵀ · x and the column sums of grad: the gradients by weight and bias. */
  linear_backward_weights(grad: TensorHandle, x: TensorHandle): LinearGradients;
  layer_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle };
  /** Fused: probabilities are computed again, block by block; `context` is what the op returned. */
  scaled_dot_product_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    context: TensorHandle,
    num_heads: number,
  ): TensorHandle;
  /** By the definition, from the probabilities [B, heads, N, N] that the op returned. */
  eager_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    probs: TensorHandle,
    num_heads: number,
    dropout?: Dropout,
  ): TensorHandle;
  /** eager_attention with dropout of the probabilities; `probs` are those before it. */
  eager_attention_dropout(
    qkv: TensorHandle,
    num_heads: number,
    dropout: Dropout,
  ): { context: TensorHandle; probs: TensorHandle };
  /** The gradients by the projection's weight [D, C · patch_height · patch_width] and bias. */
  patch_embed_backward(grad: TensorHandle, pixel_values: TensorHandle, patch: Grid): LinearGradients;
  /** The gradients by what was assembled; a masked patch's goes to the mask token. */
  embed_tokens_backward(
    grad: TensorHandle,
    mask?: Uint8Array,
  ): {
    patches: TensorHandle;
    cls_token: TensorHandle;
    positions: TensorHandle;
    mask_token: TensorHandle | undefined;
  };
  /** [B, 1 + kept, D] back into [B, tokens, D], zero where a token was dropped. */
  take_tokens_backward(grad: TensorHandle, patches: Uint32Array, kept: number, tokens: number): TensorHandle;
  /** The transpose of the interpolation from `from` to `to`. */
  interpolate_positions_backward(grad: TensorHandle, from: Grid, to: Grid): TensorHandle;
  /** [B, D] back into [B, tokens, D]. */
  pool_backward(grad: TensorHandle, kind: "cls" | "mean", tokens: number): TensorHandle;
  /** Cross-entropy with label smoothing, as torch's: the target is (1 − s)·one_hot + s / C. Mean over labels ≠ -100. */
  cross_entropy_smoothed(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle;
  /** The gradient by the logits of the loss above (its own gradient being 1). */
  cross_entropy_backward(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle;
  mse_loss_backward(x: TensorHandle, target: TensorHandle): TensorHandle;
  bce_with_logits_backward(logits: TensorHandle, target: TensorHandle): TensorHandle;
  /**
   * Zeroes each element with `probability` and divides the rest by 1 − probability; which, is decided by a counter-based
   * generator from `seed`, so that the gradient is the same op with the same seed.
   */
  dropout(x: TensorHandle, probability: number, seed: number): TensorHandle;

  /** x + y, of one shape. */
  add(x: TensorHandle, y: TensorHandle): TensorHandle;
  /** target += scale · x, in place. */
  accumulate(target: TensorHandle, x: TensorHandle, scale: number): void;
  /** The sum of squares over all elements -> [1], in a fixed order: float64 on the CPU, blocks of float32 on a GPU. */
  sum_of_squares(x: TensorHandle): TensorHandle;
  /** One step, in place; `m` and `v` are the moments. */
  adamw_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    m: TensorHandle,
    v: TensorHandle,
    step: AdamWStep,
  ): void;
  /** `buffer` holds the momentum; without momentum there needn't be one. */
  sgd_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    buffer: TensorHandle | undefined,
    step: SgdStep,
  ): void;
  /** `buffer` holds the momentum: zero before the first step. */
  lars_step(parameter: TensorHandle, gradient: TensorHandle, buffer: TensorHandle, step: LarsStep): void;
}
