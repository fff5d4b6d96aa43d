/**
 * What training needs of an engine besides inference: the gradient of each op, and the steps of the optimisers. Every
 * `…_backward` takes the gradient of the loss with respect to the op's output, and the op's inputs, and returns the
 * gradients with respect to the inputs. None stores anything. `ts/training/` decides when they run.
 */
import type { Activation, Engine, Grid, LinearHandle, TensorHandle } from "./engine.ts";

/** The gradients of a linear layer's parameters: weight [out_features, in_features], bias [out_features]. */
export interface LinearGradients {
  weight: TensorHandle;
  bias: TensorHandle;
}

/** Which elements are dropped: each with `probability`, decided by `seed`, as described for the op dropout. */
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
  /** Decoupled: the parameter is multiplied by 1 − learning_rate · weight_decay. */
  weight_decay: number;
  /** The number of steps, including this one: 1 for the first. */
  step: number;
  /** The factor by which gradients are multiplied first, for example for clipping. */
  gradient_scale: number;
}

/** The hyper-parameters of one step of SGD, as torch.optim.SGD defines it. */
export interface SgdStep {
  learning_rate: number;
  momentum: number;
  /** Coupled: weight_decay · parameter is added to the gradient. */
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
 * The ops that a pre-training forward pass calls besides the model's. An engine computes them; on a `Tape` around it they
 * also have gradients, unless their comment says otherwise.
 */
export interface PretrainingOps {
  /** activation(x). */
  activate(x: TensorHandle, activation: Activation): TensorHandle;
  /**
   * Batch normalisation in training mode, with this batch's statistics: for each column of x [B, D],
   * (x − mean) / √(biased variance + eps) · weight + bias; weight and bias are [D].
   * @returns y [B, D] and, without gradient, `mean` [D] and the unbiased `variance` [D], from which a caller can update
   *   running statistics: `ema(running_mean, mean, 0.9)`. The caller frees all three.
   * @throws VitMsnError INVALID_ARGUMENT for a batch of 1, which has no variance.
   */
  batch_norm(x: TensorHandle, weight: TensorHandle, bias: TensorHandle, eps: number): BatchNormResult;
  /**
   * Cosine similarities divided by a temperature: normalize(x) · normalize(prototypes)ᵀ / temperature; x [R, D],
   * prototypes [K, D] -> [R, K]. Rows are divided by their Euclidean norm, or by 1e-12 if that is larger, as in torch's
   * F.normalize.
   */
  prototype_logits(x: TensorHandle, prototypes: TensorHandle, temperature: number): TensorHandle;
  /**
   * The rows of x [M, D], then those of y [N, D] -> [M + N, D]: joins groups of views of several sizes into a batch.
   */
  concat_rows(x: TensorHandle, y: TensorHandle): TensorHandle;
  /**
   * MSN's loss of the anchors' `logits` [V·B, K], view by view, against their images' `targets` [B, K], which have no
   * gradient: cross_entropy + me_max_weight · me_max + entropy_weight · entropy. With p the softmax of each row and p̄
   * the mean of p over all rows, cross_entropy is the mean of −Σ t log p, me_max is Σ p̄ log p̄ + log K, and entropy is
   * the mean of −Σ p log p.
   * @returns [4]: loss, cross_entropy, me_max, entropy. `Tape.backward` accepts it, and differentiates the first.
   */
  msn_loss(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle;
}

/** The results of batch_norm: y [B, D], the batch's mean [D] and unbiased variance [D]. */
export interface BatchNormResult {
  y: TensorHandle;
  mean: TensorHandle;
  variance: TensorHandle;
}

/** The ops of self-supervised pre-training, with their gradients. */
export interface PretrainingEngine extends PretrainingOps {
  /** The gradients with respect to the inputs of batch_norm. */
  batch_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle };
  /** Batch normalisation with given statistics [D], for evaluation: (x − mean) / √(variance + eps) · weight + bias. */
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
  /** Splits grad into its first `rows` rows and the rest. */
  concat_rows_backward(grad: TensorHandle, rows: number): { x: TensorHandle; y: TensorHandle };
  /**
   * MSN's targets from the target branch's logits [B, K]: the softmax is sharpened to p^(1 / temperature) / Σ. Then,
   * `sinkhorn_iterations` times (0 for none), each prototype's column is divided by its sum, and then each image's row
   * by its sum. Rows of the result [B, K] sum to 1. It has no gradient.
   */
  msn_targets(logits: TensorHandle, temperature: number, sinkhorn_iterations: number): TensorHandle;
  /** The gradient with respect to the logits of msn_loss's first term (its own gradient being 1). */
  msn_loss_backward(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle;
  /** target = momentum · target + (1 − momentum) · source, in place: an exponential moving average. */
  ema(target: TensorHandle, source: TensorHandle, momentum: number): void;
}

/** An engine that can train. Gradients and optimiser states are float32 tensors. */
export interface TrainingEngine extends Engine, PretrainingEngine {
  /** Sets all parameters of a floating-point linear layer from float32 tensors, rounded to its dtype. */
  set_linear(weights: LinearHandle, weight: TensorHandle, bias?: TensorHandle): void;
  /** The whole weight of a floating-point linear layer as a float32 tensor [out_features, in_features]. */
  linear_weight(weights: LinearHandle): TensorHandle;
  /** The bias of a linear layer as a float32 tensor [out_features]. */
  linear_bias(weights: LinearHandle): TensorHandle;

  /** grad · activation′(x), x being the activation's input. */
  activate_backward(grad: TensorHandle, x: TensorHandle, activation: Activation): TensorHandle;
  /** grad · weight: the gradient with respect to the input of a linear layer without activation. */
  linear_backward_input(grad: TensorHandle, weights: LinearHandle): TensorHandle;
  /** gradᵀ · x and the column sums of grad: the gradients with respect to weight and bias. */
  linear_backward_weights(grad: TensorHandle, x: TensorHandle): LinearGradients;
  layer_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle };
  /** Fused: probabilities are recomputed block by block; `context` is the op's result. */
  scaled_dot_product_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    context: TensorHandle,
    num_heads: number,
  ): TensorHandle;
  /** Unfused, from the probabilities [B, heads, N, N] that the op returned. */
  eager_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    probs: TensorHandle,
    num_heads: number,
    dropout?: Dropout,
  ): TensorHandle;
  /** eager_attention with dropout of the probabilities; `probs` are those before dropout. */
  eager_attention_dropout(
    qkv: TensorHandle,
    num_heads: number,
    dropout: Dropout,
  ): { context: TensorHandle; probs: TensorHandle };
  /** The gradients with respect to the projection's weight [D, C · patch_height · patch_width] and bias. */
  patch_embed_backward(grad: TensorHandle, pixel_values: TensorHandle, patch: Grid): LinearGradients;
  /** The gradients with respect to the inputs of embed_tokens; a masked patch's gradient goes to the mask token. */
  embed_tokens_backward(
    grad: TensorHandle,
    mask?: Uint8Array,
  ): {
    patches: TensorHandle;
    cls_token: TensorHandle;
    positions: TensorHandle;
    mask_token: TensorHandle | undefined;
  };
  /** Scatters [B, 1 + num_visible, D] back into [B, tokens, D]; dropped tokens are zero. */
  take_tokens_backward(
    grad: TensorHandle,
    patches: Uint32Array,
    num_visible: number,
    tokens: number,
  ): TensorHandle;
  /** The transpose of the interpolation from `from` to `to`. */
  interpolate_positions_backward(grad: TensorHandle, from: Grid, to: Grid): TensorHandle;
  /** Spreads [B, D] back over [B, tokens, D]. */
  pool_backward(grad: TensorHandle, kind: "cls" | "mean", tokens: number): TensorHandle;
  /** Cross-entropy with label smoothing as in torch: the target is (1 − s)·one_hot + s / C. Mean over labels ≠ -100. */
  cross_entropy_smoothed(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle;
  /** The gradient with respect to the logits of the loss above (its own gradient being 1). */
  cross_entropy_backward(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle;
  mse_loss_backward(x: TensorHandle, target: TensorHandle): TensorHandle;
  bce_with_logits_backward(logits: TensorHandle, target: TensorHandle): TensorHandle;
  /**
   * Zeroes each element with `probability` and divides the rest by 1 − probability. A counter-based generator chooses
   * the elements from `seed`, so that the gradient is the same op with the same seed.
   */
  dropout(x: TensorHandle, probability: number, seed: number): TensorHandle;

  /** x + y, of the same shape. */
  add(x: TensorHandle, y: TensorHandle): TensorHandle;
  /** target += scale · x, in place. */
  accumulate(target: TensorHandle, x: TensorHandle, scale: number): void;
  /** The sum of squares of all elements -> [1], in a fixed order: float64 on the CPU, blocks of float32 on a GPU. */
  sum_of_squares(x: TensorHandle): TensorHandle;
  /** One step, in place; `m` and `v` are the moments. */
  adamw_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    m: TensorHandle,
    v: TensorHandle,
    step: AdamWStep,
  ): void;
  /** `buffer` holds the momentum, and may be omitted without momentum. */
  sgd_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    buffer: TensorHandle | undefined,
    step: SgdStep,
  ): void;
  /** `buffer` holds the momentum: zero before the first step. */
  lars_step(parameter: TensorHandle, gradient: TensorHandle, buffer: TensorHandle, step: LarsStep): void;
}
