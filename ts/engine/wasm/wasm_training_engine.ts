import type { Activation, Grid, LinearHandle, TensorHandle } from "../engine.ts";
import { engine_not_started } from "../engine_errors.ts";
import create_glue from "../generated/glue.js";
import type {
  AdamWStep,
  BatchNormResult,
  Dropout,
  LarsStep,
  LinearGradients,
  SgdStep,
  TrainingEngine,
} from "../training_engine.ts";
import { type Glue, has_threads, WasmEngine } from "./wasm_engine.ts";

const NO_DROPOUT: Dropout = { probability: 0, seed: 0 };

/** Starts a WebAssembly instance of its own from the compiled module. */
export function create_wasm_engine(module: WebAssembly.Module): WasmTrainingEngine {
  const glue = create_glue();
  let memory: WebAssembly.Memory;
  try {
    // The glue makes the shared memory of a module with threads. Others have their own, and this stands for one that isn't
    // used: a real one would reserve 10 GiB of address space in Node.
    const unused = has_threads(module) ? undefined : ({} as WebAssembly.Memory);
    memory = glue.initSync({ module, memory: unused }).memory;
  } catch (cause) {
    throw engine_not_started(cause);
  }
  return new WasmTrainingEngine(glue, module, memory);
}

/** The CPU engine with what learning needs. */
export class WasmTrainingEngine extends WasmEngine implements TrainingEngine {
  set_linear(weights: LinearHandle, weight: TensorHandle, bias?: TensorHandle): void {
    this.call((glue) => glue.set_linear(weights, weight, bias));
  }

  linear_weight(weights: LinearHandle): TensorHandle {
    return this.call((glue) => glue.linear_weight(weights)) as TensorHandle;
  }

  linear_bias(weights: LinearHandle): TensorHandle {
    return this.call((glue) => glue.linear_bias(weights)) as TensorHandle;
  }

  activate(x: TensorHandle, activation: Activation): TensorHandle {
    return this.call((glue) => glue.activate(x, activation)) as TensorHandle;
  }

  activate_backward(grad: TensorHandle, x: TensorHandle, activation: Activation): TensorHandle {
    return this.call((glue) => glue.activate_backward(grad, x, activation)) as TensorHandle;
  }

  linear_backward_input(grad: TensorHandle, weights: LinearHandle): TensorHandle {
    return this.call((glue) => glue.linear_backward_input(grad, weights)) as TensorHandle;
  }

  linear_backward_weights(grad: TensorHandle, x: TensorHandle): LinearGradients {
    const [weight, bias] = this.#tensors<[TensorHandle, TensorHandle]>((glue) =>
      glue.linear_backward_weights(grad, x),
    );
    return { weight, bias };
  }

  layer_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle } {
    const [by_x, by_weight, by_bias] = this.#tensors<[TensorHandle, TensorHandle, TensorHandle]>((glue) =>
      glue.layer_norm_backward(grad, x, weight, eps),
    );
    return { x: by_x, weight: by_weight, bias: by_bias };
  }

  scaled_dot_product_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    context: TensorHandle,
    num_heads: number,
  ): TensorHandle {
    return this.call((glue) =>
      glue.scaled_dot_product_attention_backward(grad, qkv, context, num_heads),
    ) as TensorHandle;
  }

  eager_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    probs: TensorHandle,
    num_heads: number,
    { probability, seed }: Dropout = NO_DROPOUT,
  ): TensorHandle {
    return this.call((glue) =>
      glue.eager_attention_backward(grad, qkv, probs, num_heads, probability, seed),
    ) as TensorHandle;
  }

  eager_attention_dropout(
    qkv: TensorHandle,
    num_heads: number,
    { probability, seed }: Dropout,
  ): { context: TensorHandle; probs: TensorHandle } {
    const [context, probs] = this.#tensors<[TensorHandle, TensorHandle]>((glue) =>
      glue.eager_attention_dropout(qkv, num_heads, probability, seed),
    );
    return { context, probs };
  }

  patch_embed_backward(grad: TensorHandle, pixel_values: TensorHandle, patch: Grid): LinearGradients {
    const [weight, bias] = this.#tensors<[TensorHandle, TensorHandle]>((glue) =>
      glue.patch_embed_backward(grad, pixel_values, patch.height, patch.width),
    );
    return { weight, bias };
  }

  embed_tokens_backward(
    grad: TensorHandle,
    mask?: Uint8Array,
  ): {
    patches: TensorHandle;
    cls_token: TensorHandle;
    positions: TensorHandle;
    mask_token: TensorHandle | undefined;
  } {
    const [patches, cls_token, positions, mask_token] = this.#tensors<
      [TensorHandle, TensorHandle, TensorHandle, TensorHandle | undefined]
    >((glue) => glue.embed_tokens_backward(grad, mask));
    return { patches, cls_token, positions, mask_token };
  }

  take_tokens_backward(grad: TensorHandle, patches: Uint32Array, kept: number, tokens: number): TensorHandle {
    return this.call((glue) => glue.take_tokens_backward(grad, patches, kept, tokens)) as TensorHandle;
  }

  interpolate_positions_backward(grad: TensorHandle, from: Grid, to: Grid): TensorHandle {
    return this.call((glue) =>
      glue.interpolate_positions_backward(grad, from.height, from.width, to.height, to.width),
    ) as TensorHandle;
  }

  pool_backward(grad: TensorHandle, kind: "cls" | "mean", tokens: number): TensorHandle {
    return this.call((glue) => glue.pool_backward(grad, kind, tokens)) as TensorHandle;
  }

  cross_entropy_smoothed(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle {
    return this.call((glue) => glue.cross_entropy_smoothed(logits, labels, label_smoothing)) as TensorHandle;
  }

  cross_entropy_backward(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle {
    return this.call((glue) => glue.cross_entropy_backward(logits, labels, label_smoothing)) as TensorHandle;
  }

  mse_loss_backward(x: TensorHandle, target: TensorHandle): TensorHandle {
    return this.call((glue) => glue.mse_loss_backward(x, target)) as TensorHandle;
  }

  bce_with_logits_backward(logits: TensorHandle, target: TensorHandle): TensorHandle {
    return this.call((glue) => glue.bce_with_logits_backward(logits, target)) as TensorHandle;
  }

  dropout(x: TensorHandle, probability: number, seed: number): TensorHandle {
    return this.call((glue) => glue.dropout(x, probability, seed)) as TensorHandle;
  }

  add(x: TensorHandle, y: TensorHandle): TensorHandle {
    return this.call((glue) => glue.add(x, y)) as TensorHandle;
  }

  accumulate(target: TensorHandle, x: TensorHandle, scale: number): void {
    this.call((glue) => glue.accumulate(target, x, scale));
  }

  sum_of_squares(x: TensorHandle): TensorHandle {
    return this.call((glue) => glue.sum_of_squares(x)) as TensorHandle;
  }

  batch_norm(x: TensorHandle, weight: TensorHandle, bias: TensorHandle, eps: number): BatchNormResult {
    const [y, mean, variance] = this.#tensors<[TensorHandle, TensorHandle, TensorHandle]>((glue) =>
      glue.batch_norm(x, weight, bias, eps),
    );
    return { y, mean, variance };
  }

  batch_norm_backward(
    grad: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    eps: number,
  ): { x: TensorHandle; weight: TensorHandle; bias: TensorHandle } {
    const [by_x, by_weight, by_bias] = this.#tensors<[TensorHandle, TensorHandle, TensorHandle]>((glue) =>
      glue.batch_norm_backward(grad, x, weight, eps),
    );
    return { x: by_x, weight: by_weight, bias: by_bias };
  }

  batch_norm_inference(
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle,
    mean: TensorHandle,
    variance: TensorHandle,
    eps: number,
  ): TensorHandle {
    return this.call((glue) =>
      glue.batch_norm_inference(x, weight, bias, mean, variance, eps),
    ) as TensorHandle;
  }

  prototype_logits(x: TensorHandle, prototypes: TensorHandle, temperature: number): TensorHandle {
    return this.call((glue) => glue.prototype_logits(x, prototypes, temperature)) as TensorHandle;
  }

  prototype_logits_backward(
    grad: TensorHandle,
    x: TensorHandle,
    prototypes: TensorHandle,
    temperature: number,
  ): { x: TensorHandle; prototypes: TensorHandle } {
    const [by_x, by_prototypes] = this.#tensors<[TensorHandle, TensorHandle]>((glue) =>
      glue.prototype_logits_backward(grad, x, prototypes, temperature),
    );
    return { x: by_x, prototypes: by_prototypes };
  }

  concat_rows(x: TensorHandle, y: TensorHandle): TensorHandle {
    return this.call((glue) => glue.concat_rows(x, y)) as TensorHandle;
  }

  concat_rows_backward(grad: TensorHandle, rows: number): { x: TensorHandle; y: TensorHandle } {
    const [x, y] = this.#tensors<[TensorHandle, TensorHandle]>((glue) =>
      glue.concat_rows_backward(grad, rows),
    );
    return { x, y };
  }

  msn_targets(logits: TensorHandle, temperature: number, sinkhorn_iterations: number): TensorHandle {
    return this.call((glue) => glue.msn_targets(logits, temperature, sinkhorn_iterations)) as TensorHandle;
  }

  msn_loss(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle {
    return this.call((glue) => glue.msn_loss(logits, targets, me_max_weight, entropy_weight)) as TensorHandle;
  }

  msn_loss_backward(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle {
    return this.call((glue) =>
      glue.msn_loss_backward(logits, targets, me_max_weight, entropy_weight),
    ) as TensorHandle;
  }

  ema(target: TensorHandle, source: TensorHandle, momentum: number): void {
    this.call((glue) => glue.ema(target, source, momentum));
  }

  adamw_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    m: TensorHandle,
    v: TensorHandle,
    { learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale }: AdamWStep,
  ): void {
    this.call((glue) =>
      glue.adamw_step(
        parameter,
        gradient,
        m,
        v,
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        step,
        gradient_scale,
      ),
    );
  }

  sgd_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    buffer: TensorHandle | undefined,
    { learning_rate, momentum, weight_decay, nesterov, first, gradient_scale }: SgdStep,
  ): void {
    this.call((glue) =>
      glue.sgd_step(
        parameter,
        gradient,
        buffer,
        learning_rate,
        momentum,
        weight_decay,
        nesterov,
        first,
        gradient_scale,
      ),
    );
  }

  lars_step(
    parameter: TensorHandle,
    gradient: TensorHandle,
    buffer: TensorHandle,
    { learning_rate, momentum, weight_decay, trust_coefficient, epsilon, gradient_scale }: LarsStep,
  ): void {
    this.call((glue) =>
      glue.lars_step(
        parameter,
        gradient,
        buffer,
        learning_rate,
        momentum,
        weight_decay,
        trust_coefficient,
        epsilon,
        gradient_scale,
      ),
    );
  }

  /** What an op with several results returns: as many as its kernel makes. */
  #tensors<T extends readonly (TensorHandle | undefined)[]>(op: (glue: Glue) => Uint32Array): T {
    return Array.from(this.call(op)) as unknown as T;
  }
}
