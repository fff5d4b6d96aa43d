/**
 * What training needs of an engine besides inference: the gradient of each op, and the steps of the optimisers. Every
 * `…_backward` takes the gradient of the loss by the op's output, and what the op read, and returns gradients by what it
 * read; none stores anything. `ts/training/` decides when they run.
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

/**
 * What a pre-training forward calls besides the model's ops. An engine computes them; on a `Tape` around it they have their
 * gradients, too, but for what is said to have none.
 */
export interface PretrainingOps {
  /** activation(x). */
  activate(x: TensorHandle, activation: Activation): TensorHandle;
  /**
   * Batch normalisation in training mode, by the statistics of this batch: (x − mean) / √(biased variance + eps) · weight +
   * bias for each column of x [B, D]; weight and bias are [D].
   * @returns y [B, D]; and, without gradient, `mean` [D] and the unbiased `variance` [D], which a caller that keeps running
   *   statistics averages into them: `ema(running_mean, mean, 0.9)`. All three are the caller's to free.
   * @throws VitMsnError INVALID_ARGUMENT for a batch of 1, which has no variance.
   */
  batch_norm(x: TensorHandle, weight: TensorHandle, bias: TensorHandle, eps: number): BatchNormResult;
  /**
   * Cosine similarities over a temperature: normalize(x) · normalize(prototypes)ᵀ / temperature of x [R, D] and prototypes
   * [K, D] -> [R, K]. Rows are divided by their Euclidean length, or 1e-12 where that is shorter, as torch's F.normalize does.
   */
  prototype_logits(x: TensorHandle, prototypes: TensorHandle, temperature: number): TensorHandle;
  /** The rows of x [M, D], then those of y [N, D] -> [M + N, D]: how groups of views of several sizes become one batch. */
  concat_rows(x: TensorHandle, y: TensorHandle): TensorHandle;
  /**
   * MSN's loss of the anchors' `logits` [V·B, K], view by view, against their images' `targets` [B, K], which have no
   * gradient: cross_entropy + me_max_weight · me_max + entropy_weight · entropy, where, with p the softmax of each row and
   * p̄ the mean of p over all rows, cross_entropy is the mean of −Σ t log p, me_max = Σ p̄ log p̄ + log K, and entropy the
   * mean of −Σ p log p.
   * @returns [4]: loss, cross_entropy, me_max, entropy. `Tape.backward` takes it, and goes back from the first.
   */
  msn_loss(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle;
}

/** What batch_norm returns: y [B, D], the batch's mean [D] and unbiased variance [D]. */
export interface BatchNormResult {
  y: TensorHandle;
  mean: TensorHandle;
  variance: TensorHandle;
}

/** The ops of self-supervised pre-training, with their gradients. */
export interface PretrainingEngine extends PretrainingOps {
  /** The gradients by what batch_norm read. */
  batch_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle };
  /** Batch normalisation in evaluation mode, by given statistics [D]: (x − mean) / √(variance + eps) · weight + bias. */
  batch_norm_inference(
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle,
    mean: TensorHandle,
    variance: TensorHandle,
    eps: number,
  ): TensorHandle;
  prototype_logits_backward(
    grad: TensorHandle,
    x: TensorHandle,
    prototypes: TensorHandle,
    temperature: number,
  ): { x: TensorHandle; prototypes: TensorHandle };
  /** The first `rows` rows of grad, and the others. */
  concat_rows_backward(grad: TensorHandle, rows: number): { x: TensorHandle; y: TensorHandle };
  /**
   * MSN's targets from the target branch's logits [B, K]: softmax, sharpened to p^(1 / temperature) / Σ, then
   * `sinkhorn_iterations` times (0 for none): each prototype's column divided by its sum, then each image's row by its
   * own. Rows of the result [B, K] sum to 1. It has no gradient.
   */
  msn_targets(logits: TensorHandle, temperature: number, sinkhorn_iterations: number): TensorHandle;
  /** The gradient by the logits of msn_loss's first term (its own gradient being 1). */
  msn_loss_backward(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle;
  /** target = momentum · target + (1 − momentum) · source, in place: an exponential moving average, of one shape. */
  ema(target: TensorHandle, source: TensorHandle, momentum: number): void;
}

/** An engine that can learn. Gradients and states of optimisers are float32 tensors. */
export interface TrainingEngine extends Engine, PretrainingEngine {
  /** Sets the whole of a floating linear layer from plain float32 tensors, rounded to its dtype. */
  set_linear(weights: LinearHandle, weight: TensorHandle, bias?: TensorHandle): void;
  /** The whole weight of a floating linear layer as a plain float32 tensor [out_features, in_features]. */
  linear_weight(weights: LinearHandle): TensorHandle;
  /** The bias of a linear layer as a plain float32 tensor [out_features]. */
  linear_bias(weights: LinearHandle): TensorHandle;

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
  /** [B, 1 + num_visible, D] back into [B, tokens, D], zero where a token was dropped. */
  take_tokens_backward(
    grad: TensorHandle,
    patches: Uint32Array,
    num_visible: number,
    tokens: number,
  ): TensorHandle;
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
