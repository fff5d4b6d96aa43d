import { numel } from "../dims.ts";
import type { FloatDtype, WeightDtype } from "../dtypes.ts";
import {
  type Activation,
  type EngineMemory,
  type Grid,
  type Handle,
  type LinearHandle,
  Scope,
  type TensorHandle,
} from "../engine/engine.ts";
import { Pacer } from "../engine/pacer.ts";
import type {
  BatchNormResult,
  Dropout,
  LinearGradients,
  PretrainingOps,
  TrainingEngine,
} from "../engine/training_engine.ts";
import { VitMsnError } from "../errors.ts";
import type { Recorder } from "../model/modeling_vit_msn.ts";
import { mix } from "../model/random.ts";
import { Random } from "./random.ts";

/** Receives the gradients of parameters, and takes ownership of them. */
export interface GradientSink {
  /** Whether this parameter (a tensor, or a linear layer's weight or bias) needs a gradient. */
  wants(parameter: Handle): boolean;
  add(parameter: TensorHandle, gradient: TensorHandle): void;
  add_linear(layer: LinearHandle, gradients: LinearGradients): void;
  /** The adapter of a linear layer, if it has one. */
  adapter?(layer: LinearHandle): Adapter | undefined;
}

/** What a layer's result grows by: scale · up(down(dropout(x))). */
export interface Adapter {
  readonly down: LinearHandle;
  readonly up: LinearHandle;
  readonly scale: number;
  readonly dropout: number;
}

export interface TapeOptions {
  /** How many layers' activations to recompute at a time for the gradient; default 0: all are stored. */
  layers_per_checkpoint?: number;
  /** Dropout after the embeddings and before each residual, as in the reference; default 0. */
  hidden_dropout_prob?: number;
  /** Dropout of attention's probabilities, which are then computed eagerly; default 0. */
  attention_probs_dropout_prob?: number;
  /** For each layer, the probability that an image skips its attention, and that it skips its MLP; default 0. */
  drop_path_rates?: readonly number[];
  /** The seed of dropout and skipped branches; default 0. */
  seed?: number;
  signal?: AbortSignal | undefined;
}

/** A tensor of the forward pass, for differentiation. */
interface Value {
  readonly wants_gradient: boolean;
  /** Set if it is a parameter. */
  readonly parameter?: TensorHandle;
  /** The accumulated gradient of its uses. */
  gradient: TensorHandle | undefined;
}

/** One recorded op. `backward` takes ownership of its argument. */
interface Step {
  readonly output: Value;
  readonly held: readonly TensorHandle[];
  readonly backward: (gradient: TensorHandle) => void | Promise<void>;
}

const CONSTANT: Value = Object.freeze({ wants_gradient: false, gradient: undefined });

/**
 * Reverse-mode differentiation as a decorator: an Engine that records the ops that run on it and then
 * differentiates them in reverse. The model's forward pass runs on it unchanged.
 *
 * Lifetimes are explicit. A tensor that a gradient needs is held, and outlives its `free`, until the backward
 * of its step has run; `close()` frees everything, however the forward and backward passes ended. Ops that no
 * wanted parameter influences aren't recorded. One tape serves one forward and one backward pass.
 */
export class Tape implements Recorder, PretrainingOps {
  readonly layers_per_checkpoint: number;
  readonly #engine: TrainingEngine;
  readonly #sink: GradientSink;
  readonly #dropout_prob: number;
  readonly #attention_dropout_prob: number;
  readonly #drop_path_rates: readonly number[];
  readonly #seed: number;
  readonly #pacer: Pacer;
  /** Gradients that are in flight. */
  readonly #made: Scope;
  readonly #values = new Map<TensorHandle, Value>();
  readonly #holds = new Map<TensorHandle, number>();
  /** Freed by the forward pass while still held. */
  readonly #released = new Set<TensorHandle>();
  #steps: Step[] = [];
  /** false while layers run whose activations will be recomputed. */
  #recording = true;
  /** The number of dropouts so far, from which each derives its seed. */
  #dropouts = 0;
  /** The number of branches with a residual so far: two a layer. */
  #branches = 0;
  #loss_scale = 1;

  constructor(engine: TrainingEngine, sink: GradientSink, options: TapeOptions = {}) {
    this.#engine = engine;
    this.#sink = sink;
    this.#made = new Scope(engine);
    this.layers_per_checkpoint = options.layers_per_checkpoint ?? 0;
    this.#dropout_prob = options.hidden_dropout_prob ?? 0;
    this.#attention_dropout_prob = options.attention_probs_dropout_prob ?? 0;
    this.#drop_path_rates = options.drop_path_rates ?? [];
    this.#seed = options.seed ?? 0;
    this.#pacer = new Pacer(options.signal, "training");
  }

  /**
   * Passes the gradient of scale · loss with respect to every wanted parameter to the sink.
   * @param loss the result of a loss op on this tape.
   */
  async backward(loss: TensorHandle, scale = 1): Promise<void> {
    const value = this.#values.get(loss);
    if (value === undefined) {
      throw new VitMsnError("INVALID_ARGUMENT", "backward() needs a loss that was computed on this tape.");
    }
    this.#loss_scale = scale;
    value.gradient = this.#made.use(this.#engine.tensor(Float32Array.of(scale), [1]));
    await this.#go_back();
  }

  /**
   * Passes the gradient of a loss that isn't on this tape to the sink.
   * @param output any tensor that was computed on this tape.
   * @param gradient of the loss with respect to `output`, of its shape; the caller still owns it.
   */
  async backward_from(output: TensorHandle, gradient: TensorHandle): Promise<void> {
    const value = this.#values.get(output);
    // Nothing that is trained influences it.
    if (!value?.wants_gradient) return;
    value.gradient = this.#copy(gradient, 1);
    await this.#go_back();
  }

  /** Frees everything that is held. */
  close(): void {
    this.#drop_steps();
    this.#made.close();
  }

  // Ops of the model's forward pass.

  linear(
    x: TensorHandle,
    weights: LinearHandle,
    activation: Activation,
    residual?: TensorHandle,
  ): TensorHandle {
    const adapter = this.#sink.adapter?.(weights);
    const drop_path_rate = residual === undefined ? 0 : (this.#drop_path_rates[this.#branches++ >> 1] ?? 0);
    if (
      residual !== undefined &&
      (activation !== "identity" || this.#dropout_prob > 0 || drop_path_rate > 0 || adapter !== undefined)
    ) {
      const branch = this.#dropped_path(this.#dropped(this.linear(x, weights, activation)), drop_path_rate);
      const sum = this.#add(branch, residual);
      this.free(branch);
      return sum;
    }
    const wants_gradient =
      this.#value(x).wants_gradient || this.#sink.wants(weights) || adapter !== undefined;
    if (activation !== "identity" && wants_gradient) {
      const before = this.linear(x, weights, "identity");
      const output = this.activate(before, activation);
      this.free(before);
      return output;
    }
    if (adapter === undefined) return this.#linear(x, weights, activation, residual);
    const plain = this.#linear(x, weights, "identity");
    const branch = this.#adapted(x, adapter);
    const sum = this.#add(plain, branch);
    for (const handle of [plain, branch]) this.free(handle);
    return sum;
  }

  /** A linear layer without its adapter; with an activation only if nothing wants its gradient. */
  #linear(
    x: TensorHandle,
    weights: LinearHandle,
    activation: Activation,
    residual?: TensorHandle,
  ): TensorHandle {
    const input = this.#value(x);
    const is_trained = this.#sink.wants(weights);
    const skipped = residual === undefined ? CONSTANT : this.#value(residual);
    const output = this.#engine.linear(x, weights, activation, residual);
    const wants_gradient = input.wants_gradient || is_trained || skipped.wants_gradient;
    return this.#note(output, wants_gradient, is_trained ? [x] : [], (gradient) => {
      if (input.wants_gradient) this.#give(input, this.#engine.linear_backward_input(gradient, weights));
      if (is_trained) this.#sink.add_linear(weights, this.#engine.linear_backward_weights(gradient, x));
      this.#pass(skipped, gradient);
    });
  }

  layer_norm(x: TensorHandle, weight: TensorHandle, bias: TensorHandle, eps: number): TensorHandle {
    const [input, scale, shift] = [this.#value(x), this.#value(weight), this.#value(bias)];
    const output = this.#engine.layer_norm(x, weight, bias, eps);
    return this.#note(output, any_wants(input, scale, shift), [x], (gradient) => {
      const by = this.#engine.layer_norm_backward(gradient, x, weight, eps);
      this.#made.free(gradient);
      this.#give(input, by.x);
      this.#give(scale, by.weight);
      this.#give(shift, by.bias);
    });
  }

  scaled_dot_product_attention(qkv: TensorHandle, num_heads: number): TensorHandle {
    if (this.#attention_dropout_prob > 0) {
      const { context, probs } = this.eager_attention(qkv, num_heads);
      this.free(probs);
      return context;
    }
    const input = this.#value(qkv);
    const context = this.#engine.scaled_dot_product_attention(qkv, num_heads);
    return this.#note(context, input.wants_gradient, [qkv, context], (gradient) => {
      const backward = this.#engine.scaled_dot_product_attention_backward(gradient, qkv, context, num_heads);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  eager_attention(qkv: TensorHandle, num_heads: number): { context: TensorHandle; probs: TensorHandle } {
    const input = this.#value(qkv);
    const dropout = this.#next_dropout(this.#attention_dropout_prob);
    const { context, probs } = dropout
      ? this.#engine.eager_attention_dropout(qkv, num_heads, dropout)
      : this.#engine.eager_attention(qkv, num_heads);
    this.#note(context, input.wants_gradient, [qkv, probs], (gradient) => {
      const backward = this.#engine.eager_attention_backward(gradient, qkv, probs, num_heads, dropout);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
    return { context, probs };
  }

  patch_embed(pixel_values: TensorHandle, projection: LinearHandle, patch: Grid): TensorHandle {
    const is_trained = this.#sink.wants(projection);
    const output = this.#engine.patch_embed(pixel_values, projection, patch);
    return this.#note(output, is_trained, [pixel_values], (gradient) => {
      this.#sink.add_linear(projection, this.#engine.patch_embed_backward(gradient, pixel_values, patch));
      this.#made.free(gradient);
    });
  }

  embed_tokens(
    patches: TensorHandle,
    cls_token: TensorHandle,
    positions: TensorHandle,
    masked?: { mask: Uint8Array; mask_token: TensorHandle },
  ): TensorHandle {
    const [embedded, cls, places] = [this.#value(patches), this.#value(cls_token), this.#value(positions)];
    const mask = masked ? this.#value(masked.mask_token) : CONSTANT;
    const output = this.#engine.embed_tokens(patches, cls_token, positions, masked);
    this.#note(output, any_wants(embedded, cls, places, mask), [], (gradient) => {
      const by = this.#engine.embed_tokens_backward(gradient, masked?.mask);
      this.#made.free(gradient);
      this.#give(embedded, by.patches);
      this.#give(cls, by.cls_token);
      this.#give(places, by.positions);
      if (by.mask_token !== undefined) this.#give(mask, by.mask_token);
    });
    return this.#dropped(output);
  }

  take_tokens(x: TensorHandle, patches: Uint32Array, visible: number): TensorHandle {
    const input = this.#value(x);
    const tokens = this.#engine.dims(x)[1] as number;
    const output = this.#engine.take_tokens(x, patches, visible);
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = this.#engine.take_tokens_backward(gradient, patches, visible, tokens);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  interpolate_positions(positions: TensorHandle, from: Grid, to: Grid): TensorHandle {
    const input = this.#value(positions);
    const output = this.#engine.interpolate_positions(positions, from, to);
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = this.#engine.interpolate_positions_backward(gradient, from, to);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  pool(x: TensorHandle, kind: "cls" | "mean"): TensorHandle {
    const input = this.#value(x);
    const tokens = this.#engine.dims(x)[1] as number;
    const output = this.#engine.pool(x, kind);
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = this.#engine.pool_backward(gradient, kind, tokens);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  cross_entropy(logits: TensorHandle, labels: Int32Array): TensorHandle {
    return this.#loss(this.#engine.cross_entropy(logits, labels), logits, () =>
      this.#engine.cross_entropy_backward(logits, labels, 0),
    );
  }

  /** As TrainingEngine's. */
  cross_entropy_smoothed(logits: TensorHandle, labels: Int32Array, label_smoothing: number): TensorHandle {
    const loss = this.#engine.cross_entropy_smoothed(logits, labels, label_smoothing);
    return this.#loss(loss, logits, () =>
      this.#engine.cross_entropy_backward(logits, labels, label_smoothing),
    );
  }

  mse_loss(x: TensorHandle, target: TensorHandle): TensorHandle {
    const loss = this.#engine.mse_loss(x, target);
    return this.#loss(loss, x, () => this.#engine.mse_loss_backward(x, target), target);
  }

  bce_with_logits(logits: TensorHandle, target: TensorHandle): TensorHandle {
    const loss = this.#engine.bce_with_logits(logits, target);
    return this.#loss(loss, logits, () => this.#engine.bce_with_logits_backward(logits, target), target);
  }

  // Additional ops of pre-training's forward.

  activate(x: TensorHandle, activation: Activation): TensorHandle {
    const input = this.#value(x);
    return this.#note(this.#engine.activate(x, activation), input.wants_gradient, [x], (gradient) => {
      const backward = this.#engine.activate_backward(gradient, x, activation);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  batch_norm(x: TensorHandle, weight: TensorHandle, bias: TensorHandle, eps: number): BatchNormResult {
    const [input, scale, shift] = [this.#value(x), this.#value(weight), this.#value(bias)];
    const result = this.#engine.batch_norm(x, weight, bias, eps);
    this.#note(result.y, any_wants(input, scale, shift), [x], (gradient) => {
      const by = this.#engine.batch_norm_backward(gradient, x, weight, eps);
      this.#made.free(gradient);
      this.#give(input, by.x);
      this.#give(scale, by.weight);
      this.#give(shift, by.bias);
    });
    return result;
  }

  prototype_logits(x: TensorHandle, prototypes: TensorHandle, temperature: number): TensorHandle {
    const [input, directions] = [this.#value(x), this.#value(prototypes)];
    const output = this.#engine.prototype_logits(x, prototypes, temperature);
    return this.#note(output, any_wants(input, directions), [x, prototypes], (gradient) => {
      const by = this.#engine.prototype_logits_backward(gradient, x, prototypes, temperature);
      this.#made.free(gradient);
      this.#give(input, by.x);
      this.#give(directions, by.prototypes);
    });
  }

  concat_rows(x: TensorHandle, y: TensorHandle): TensorHandle {
    const [first, rest] = [this.#value(x), this.#value(y)];
    const rows = this.#engine.dims(x)[0] as number;
    const output = this.#engine.concat_rows(x, y);
    return this.#note(output, any_wants(first, rest), [], (gradient) => {
      const by = this.#engine.concat_rows_backward(gradient, rows);
      this.#made.free(gradient);
      this.#give(first, by.x);
      this.#give(rest, by.y);
    });
  }

  msn_loss(
    logits: TensorHandle,
    targets: TensorHandle,
    me_max_weight: number,
    entropy_weight: number,
  ): TensorHandle {
    const terms = this.#engine.msn_loss(logits, targets, me_max_weight, entropy_weight);
    return this.#loss(
      terms,
      logits,
      () => this.#engine.msn_loss_backward(logits, targets, me_max_weight, entropy_weight),
      targets,
    );
  }

  async checkpoint(
    hidden: TensorHandle,
    layers: (hidden: TensorHandle, scope?: Scope) => Promise<TensorHandle>,
  ): Promise<TensorHandle> {
    const input = this.#value(hidden);
    const [dropouts, branches] = [this.#dropouts, this.#branches];
    // The layers free their input, but the second run needs it.
    this.#hold(hidden);
    this.#recording = false;
    try {
      const output = await layers(hidden);
      this.#recording = true;
      return this.#note(output, this.#value(output).wants_gradient, [hidden], (gradient) =>
        this.#again(hidden, layers, input, { dropouts, branches }, gradient),
      );
    } finally {
      this.#recording = true;
      this.#let_go(hidden);
    }
  }

  free(handle: Handle): void {
    if (this.#holds.has(handle as TensorHandle)) this.#released.add(handle as TensorHandle);
    else {
      this.#values.delete(handle as TensorHandle);
      this.#engine.free(handle);
    }
  }

  // Ops without gradients.

  tensor(data: Float32Array, dims: readonly number[]): TensorHandle {
    return this.#engine.tensor(data, dims);
  }

  parameter(bytes: Uint8Array, from: FloatDtype, dtype: FloatDtype, dims: readonly number[]): TensorHandle {
    return this.#engine.parameter(bytes, from, dtype, dims);
  }

  parameter_bytes(parameter: TensorHandle, dtype: FloatDtype): Promise<Uint8Array> {
    return this.#engine.parameter_bytes(parameter, dtype);
  }

  linear_weights(
    out_features: number,
    in_features: number,
    dtype: WeightDtype,
    has_bias: boolean,
  ): LinearHandle {
    return this.#engine.linear_weights(out_features, in_features, dtype, has_bias);
  }

  set_rows(weights: LinearHandle, row: number, bytes: Uint8Array, from: FloatDtype): void {
    this.#engine.set_rows(weights, row, bytes, from);
  }

  set_quantised_rows(weights: LinearHandle, row: number, bytes: Uint8Array, scales: Uint8Array): void {
    this.#engine.set_quantised_rows(weights, row, bytes, scales);
  }

  set_bias(weights: LinearHandle, offset: number, bytes: Uint8Array, from: FloatDtype): void {
    this.#engine.set_bias(weights, offset, bytes, from);
  }

  get_rows(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array> {
    return this.#engine.get_rows(weights, row, rows);
  }

  get_scales(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array> {
    return this.#engine.get_scales(weights, row, rows);
  }

  get_bias(weights: LinearHandle, offset: number, count: number): Promise<Uint8Array> {
    return this.#engine.get_bias(weights, offset, count);
  }

  dims(x: TensorHandle): number[] {
    return this.#engine.dims(x);
  }

  read(x: TensorHandle): Promise<Float32Array> {
    return this.#engine.read(x);
  }

  ready(x: Handle): Promise<void> {
    return this.#engine.ready(x);
  }

  caught_up(x: TensorHandle): Promise<void> {
    return this.#engine.caught_up(x);
  }

  memory(): EngineMemory {
    return this.#engine.memory();
  }

  dispose(): Promise<void> {
    return this.#engine.dispose();
  }

  // The parts of the forward pass's fused ops.

  #add(x: TensorHandle, y: TensorHandle): TensorHandle {
    const [a, b] = [this.#value(x), this.#value(y)];
    return this.#note(this.#engine.add(x, y), any_wants(a, b), [], (gradient) => {
      // The first may take the gradient itself only if the second needs none.
      if (a.wants_gradient && b.wants_gradient) this.#give(a, this.#copy(gradient, 1));
      this.#pass(b.wants_gradient ? b : a, gradient);
    });
  }

  /** x after dropout; frees x if the result is another tensor. */
  #dropped(x: TensorHandle): TensorHandle {
    const output = this.#with_dropout(x, this.#dropout_prob);
    if (output !== x) this.free(x);
    return output;
  }

  /** What an adapter adds to its layer's result. */
  #adapted(x: TensorHandle, { down, up, scale, dropout }: Adapter): TensorHandle {
    const dropped = this.#with_dropout(x, dropout);
    const low = this.linear(dropped, down, "identity");
    if (dropped !== x) this.free(dropped);
    const scaled = this.#scaled(low, scale);
    this.free(low);
    const output = this.linear(scaled, up, "identity");
    this.free(scaled);
    return output;
  }

  #scaled(x: TensorHandle, scale: number): TensorHandle {
    const input = this.#value(x);
    const output = this.#made.release(this.#copy(x, scale));
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = this.#copy(gradient, scale);
      this.#made.free(gradient);
      this.#pass(input, backward);
    });
  }

  /** x after dropout: x itself without one. */
  #with_dropout(x: TensorHandle, by: number): TensorHandle {
    const dropout = this.#next_dropout(by);
    if (dropout === undefined) return x;
    const { probability, seed } = dropout;
    const input = this.#value(x);
    const output = this.#engine.dropout(x, probability, seed);
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = this.#engine.dropout(gradient, probability, seed);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  /** x [B, …] after stochastic depth: each image's values are 0 with probability `rate`, else divided by 1 − rate. Frees x. */
  #dropped_path(x: TensorHandle, rate: number): TensorHandle {
    const dropout = this.#next_dropout(rate);
    if (dropout === undefined) return x;
    const input = this.#value(x);
    const dims = this.#engine.dims(x);
    const factors = Float32Array.from({ length: dims[0] as number }, (_, image) =>
      new Random(dropout.seed, image).uniform() < rate ? 0 : 1 / (1 - rate),
    );
    const output = scaled_images(this.#engine, x, dims, factors);
    this.free(x);
    return this.#note(output, input.wants_gradient, [], (gradient) => {
      const backward = scaled_images(this.#engine, gradient, dims, factors);
      this.#made.free(gradient);
      this.#give(input, backward);
    });
  }

  /** The seed of the next dropout. */
  #next_dropout(probability: number): Dropout | undefined {
    if (probability === 0) return undefined;
    return { probability, seed: mix(this.#seed ^ mix(++this.#dropouts)) };
  }

  #loss(
    loss: TensorHandle,
    logits: TensorHandle,
    backward: () => TensorHandle,
    target?: TensorHandle,
  ): TensorHandle {
    const input = this.#value(logits);
    const held = target === undefined ? [logits] : [logits, target];
    return this.#note(loss, input.wants_gradient, held, (gradient) => {
      this.#made.free(gradient);
      const by_logits = this.#made.use(backward());
      if (this.#loss_scale === 1) this.#pass(input, by_logits);
      else {
        const scaled = this.#copy(by_logits, this.#loss_scale);
        this.#made.free(by_logits);
        this.#give(input, scaled);
      }
    });
  }

  /** scale · x in a new tensor. */
  #copy(x: TensorHandle, scale: number): TensorHandle {
    const dims = this.#engine.dims(x);
    const copy = this.#made.use(this.#engine.tensor(new Float32Array(numel(dims)), dims));
    this.#engine.accumulate(copy, x, scale);
    return copy;
  }

  // Recording and the backward pass.

  #value(handle: TensorHandle): Value {
    const known = this.#values.get(handle);
    if (known !== undefined) return known;
    if (!this.#sink.wants(handle)) return CONSTANT;
    return { wants_gradient: true, parameter: handle, gradient: undefined };
  }

  #note(
    output: TensorHandle,
    wants_gradient: boolean,
    held: readonly TensorHandle[],
    backward: Step["backward"],
  ): TensorHandle {
    const value = { wants_gradient, gradient: undefined };
    this.#values.set(output, value);
    if (wants_gradient && this.#recording) {
      for (const handle of held) this.#hold(handle);
      this.#steps.push({ output: value, held, backward });
    }
    return output;
  }

  #hold(handle: TensorHandle): void {
    this.#holds.set(handle, (this.#holds.get(handle) ?? 0) + 1);
  }

  #let_go(handle: TensorHandle): void {
    const holds = (this.#holds.get(handle) as number) - 1;
    if (holds > 0) {
      this.#holds.set(handle, holds);
      return;
    }
    this.#holds.delete(handle);
    if (this.#released.delete(handle)) this.free(handle);
  }

  #drop_steps(): void {
    for (const { held } of this.#steps) for (const handle of held) this.#let_go(handle);
    this.#steps = [];
  }

  /** Runs each step once, in reverse: by then, all uses of its output have added their gradients. */
  async #go_back(): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const { output, held, backward } = step;
      const { gradient } = output;
      output.gradient = undefined;
      try {
        if (gradient === undefined) continue;
        await this.#pacer.step(this.#engine.caught_up(gradient));
        await backward(gradient);
      } finally {
        for (const handle of held) this.#let_go(handle);
      }
    }
  }

  /** Runs layers again, recorded this time, and differentiates them. */
  async #again(
    hidden: TensorHandle,
    layers: (hidden: TensorHandle, scope?: Scope) => Promise<TensorHandle>,
    input: Value,
    before: { dropouts: number; branches: number },
    gradient: TensorHandle,
  ): Promise<void> {
    const [steps, dropouts, branches] = [this.#steps, this.#dropouts, this.#branches];
    const scope = new Scope(this);
    const start: Value = { wants_gradient: input.wants_gradient, gradient: undefined };
    this.#values.set(hidden, start);
    this.#steps = [];
    this.#dropouts = before.dropouts;
    this.#branches = before.branches;
    try {
      const output = await layers(hidden, scope);
      (this.#values.get(output) as Value).gradient = gradient;
      scope.free(output);
      await this.#go_back();
    } finally {
      this.#drop_steps();
      scope.close();
      this.#steps = steps;
      this.#dropouts = dropouts;
      this.#branches = branches;
    }
    if (start.gradient !== undefined) this.#pass(input, start.gradient);
  }

  /** Adds a newly made gradient to a value's. */
  #give(value: Value, gradient: TensorHandle): void {
    this.#pass(value, this.#made.use(gradient));
  }

  /** Adds a gradient to a value's, which takes ownership of it. */
  #pass(value: Value, gradient: TensorHandle): void {
    if (!value.wants_gradient) this.#made.free(gradient);
    else if (value.parameter !== undefined) this.#sink.add(value.parameter, this.#made.release(gradient));
    else if (value.gradient === undefined) value.gradient = gradient;
    else {
      this.#engine.accumulate(value.gradient, gradient, 1);
      this.#made.free(gradient);
    }
  }
}

/** Each image's values of x [B, D] or [B, N, D] times its factor of 0 or more, by ops that every engine has. */
function scaled_images(
  engine: TrainingEngine,
  x: TensorHandle,
  dims: readonly number[],
  factors: Float32Array,
): TensorHandle {
  const [width, tokens] = [dims.at(-1) as number, dims.length > 2 ? (dims[1] as number) : 1];
  const scope = new Scope(engine);
  // The derivative of relu(x)² is 2·x.
  const rows = (scale: number) =>
    scope.use(
      engine.tensor(
        Float32Array.from(
          { length: factors.length * width },
          (_, i) => (scale * (factors[Math.floor(i / width)] as number)) / 2,
        ),
        [factors.length, width],
      ),
    );
  try {
    if (dims.length === 2) return engine.activate_backward(x, rows(1), "relu2");
    const halves = scope.use(engine.pool_backward(rows(1), "cls", tokens));
    // The mean's gradient is spread over the patches.
    if (tokens > 1)
      engine.accumulate(halves, scope.use(engine.pool_backward(rows(tokens - 1), "mean", tokens)), 1);
    return engine.activate_backward(x, halves, "relu2");
  } finally {
    scope.close();
  }
}

function any_wants(...values: readonly Value[]): boolean {
  return values.some(({ wants_gradient }) => wants_gradient);
}
