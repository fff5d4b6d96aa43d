import { numel } from "../dims.ts";
import type { WeightDtype } from "../dtypes.ts";
import type { Engine, Handle, LinearHandle, TensorHandle } from "../engine/engine.ts";
import type { LinearGradients, TrainingEngine } from "../engine/training_engine.ts";
import { VitMsnError } from "../errors.ts";
import type { LinearSpec, ParameterSpec } from "../model/architecture.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import type { Weights } from "../model/weights.ts";
import { type AdaptedLayer, LoraAdapters, type LoraOptions } from "./lora.ts";
import type { GradientSink } from "./tape.ts";

/** A trainable tensor, as the engine stores it: query, key and value are fused. */
export interface Parameter {
  /** For example "encoder.layer.0.attention.qkv.weight". */
  readonly name: string;
  /** The checkpoint's parameters that it fuses, concatenated along the rows. */
  readonly specs: readonly ParameterSpec[];
  /** Its float32 values, which the optimiser updates. */
  readonly value: TensorHandle;
  readonly size: number;
  /** 0 for the embeddings, each layer's number counted from 1, and one more for what follows. */
  readonly depth: number;
  /**
   * Whether weight decay applies: to every parameter but biases and norms, so also to positions, CLS and mask
   * token, as in transformers' Trainer and in MSN's pre-training.
   */
  readonly is_decayed: boolean;
  readonly is_trained: boolean;
  /** The accumulated gradient. */
  gradient: TensorHandle | undefined;
}

/** A linear layer, and float32 copies of the values that it packs for its kernel. */
interface TrainedLinear {
  readonly handle: LinearHandle;
  readonly weight: Parameter;
  readonly bias: Parameter | undefined;
}

/** Which parameters are frozen. */
export interface Freezing {
  /** Train the classifier alone; default false. */
  freeze_backbone?: boolean;
  /** Freeze the embeddings and this many layers from the bottom; default 0: nothing. */
  freeze_layers?: number;
  /**
   * Freeze parameters whose checkpoint key, without "vit.", has one of these prefixes, such as "embeddings."
   * or "encoder.layer.0."; default none.
   */
  freeze_keys?: readonly string[];
}

/** Which parameters learn. With `lora`, adapters and the classifier do, and everything else is frozen. */
export interface LearningOptions extends Freezing {
  lora?: LoraOptions | undefined;
}

/** Anything with trainable parameters: a model, or an encoder with another head. */
export interface Learnable {
  readonly config: ViTMSNConfig;
  readonly engine: Engine;
  readonly weights: Weights;
  readonly device: string;
  readonly dtype: WeightDtype;
  weights_changed(): void;
}

/** The parameters of a model that is being trained, and their gradients. */
export class Parameters implements GradientSink {
  readonly all: readonly Parameter[];
  readonly #model: Learnable;
  readonly #engine: TrainingEngine;
  readonly #weights: Weights;
  readonly #linears = new Map<LinearHandle, TrainedLinear>();
  readonly #tensors = new Map<TensorHandle, Parameter>();
  readonly #masks = new Map<LinearHandle, TensorHandle>();
  /** The adapters of LoRA, if there are any. */
  readonly adapters: LoraAdapters | undefined;

  /** @throws VitMsnError UNSUPPORTED for an int8 model or an engine that can't train; INVALID_ARGUMENT. */
  constructor(model: Learnable, { lora, ...freezing }: LearningOptions = {}) {
    this.#model = model;
    this.#engine = training_engine(model);
    this.#weights = model.weights;
    const is_frozen = frozen_keys(model, lora === undefined ? freezing : { freeze_backbone: true });
    const depth = (name: string) => depth_of(name, model.config.num_hidden_layers);
    const all: Parameter[] = [];
    for (const module of model.weights.modules) {
      if (module.kind === "linear")
        all.push(...this.#add_linear_layer(module, is_frozen, depth(module.name)));
      else {
        const value = model.weights.tensor(module.key);
        const is_trained = !is_frozen(module.key);
        const is_decayed = module.dims.length > 1;
        const parameter = this.#parameter(
          module.key,
          [module],
          value,
          depth(module.key),
          is_decayed,
          is_trained,
        );
        all.push(parameter);
        if (is_trained) this.#tensors.set(value, parameter);
      }
    }
    this.adapters = lora && new LoraAdapters(this.#engine, model.weights, lora);
    for (const layer of this.adapters?.layers ?? [])
      all.push(...this.#add_adapter(layer, depth(layer.module.name)));
    this.all = all;
  }

  /** The parameters that aren't frozen. */
  get trained(): Parameter[] {
    return this.all.filter(({ is_trained }) => is_trained);
  }

  wants(handle: Handle): boolean {
    return this.#tensors.has(handle as TensorHandle) || this.#linears.has(handle as LinearHandle);
  }

  add(tensor: TensorHandle, gradient: TensorHandle): void {
    add_gradient(this.#engine, this.#tensors.get(tensor), gradient);
  }

  adapter(handle: LinearHandle): AdaptedLayer | undefined {
    return this.adapters?.of(handle);
  }

  add_linear(handle: LinearHandle, { weight, bias }: LinearGradients): void {
    const linear = this.#linears.get(handle);
    add_gradient(this.#engine, linear?.weight, this.#masked(handle, weight));
    add_gradient(this.#engine, linear?.bias, bias);
  }

  /** √Σ g² over all gradients, summed in a fixed order. */
  async gradient_norm(): Promise<number> {
    let sum = 0;
    for (const { gradient } of this.trained) {
      if (gradient === undefined) continue;
      const squares = this.#engine.sum_of_squares(gradient);
      try {
        sum += (await this.#engine.read(squares))[0] as number;
      } finally {
        this.#engine.free(squares);
      }
    }
    return Math.sqrt(sum);
  }

  /** Frees all gradients. */
  clear_gradients(): void {
    for (const parameter of this.all) {
      if (parameter.gradient !== undefined) this.#engine.free(parameter.gradient);
      parameter.gradient = undefined;
    }
  }

  /** A gradient that is 0 where a fused adapter must stay 0. */
  #masked(handle: LinearHandle, gradient: TensorHandle): TensorHandle {
    const mask = this.#masks.get(handle);
    if (mask === undefined) return gradient;
    // The derivative of relu is 1 above 0, else 0.
    const masked = this.#engine.activate_backward(gradient, mask, "relu");
    this.#engine.free(gradient);
    return masked;
  }

  /** Merges the adapters into their layers, or takes them out again. */
  merge_adapters(are_merged: boolean): void {
    if (this.adapters === undefined) return;
    this.#model.weights_changed();
    if (are_merged) this.adapters.merge();
    else this.adapters.unmerge();
  }

  /** Copies the updated values into the model's linear layers. */
  write_back(): void {
    this.#model.weights_changed();
    for (const { handle, weight, bias } of this.#linears.values()) {
      this.#engine.set_linear(handle, weight.value, bias?.value);
    }
  }

  /** Ends training: the model keeps the values, in its own dtype. */
  async dispose(): Promise<void> {
    this.clear_gradients();
    for (const { weight, bias } of this.#linears.values()) {
      this.#engine.free(weight.value);
      if (bias) this.#engine.free(bias.value);
    }
    if (this.#linears.size > 0) this.adapters?.dispose();
    await this.#round_tensors();
    this.#linears.clear();
    this.#tensors.clear();
  }

  /** Rounds the values of a half-width model outside its linear layers to what its checkpoint will hold. */
  async #round_tensors(): Promise<void> {
    const { dtype } = this.#weights;
    if (dtype === "float32" || dtype === "int8") return;
    for (const [handle, { name }] of this.#tensors) {
      const dims = this.#engine.dims(handle);
      const bytes = await this.#engine.parameter_bytes(handle, dtype);
      this.#weights.replace(name, this.#engine.parameter(bytes, dtype, dtype, dims));
    }
  }

  #add_linear_layer(module: LinearSpec, is_frozen: (key: string) => boolean, depth: number): Parameter[] {
    const handle = this.#weights.linear(module.name);
    const weights = module.parts.map(({ weight }) => weight);
    const biases = module.parts.flatMap(({ bias }) => bias ?? []);
    const trains_weight = weights.some(({ key }) => !is_frozen(key));
    const trains_bias = biases.some(({ key }) => !is_frozen(key));
    if (!trains_weight && !trains_bias) return [];
    const weight = this.#parameter(
      `${module.name}.weight`,
      weights,
      this.#engine.linear_weight(handle),
      depth,
      true,
      trains_weight,
    );
    const bias =
      biases.length > 0
        ? this.#parameter(
            `${module.name}.bias`,
            biases,
            this.#engine.linear_bias(handle),
            depth,
            false,
            trains_bias,
          )
        : undefined;
    this.#linears.set(handle, { handle, weight, bias });
    return bias ? [weight, bias] : [weight];
  }

  #add_adapter({ module, down, up, mask }: AdaptedLayer, depth: number): Parameter[] {
    if (mask !== undefined) this.#masks.set(up, mask);
    return (
      [
        ["lora_A", down],
        ["lora_B", up],
      ] as const
    ).map(([name, handle]) => {
      const value = this.#engine.linear_weight(handle);
      const key = `${module.name}.${name}.weight`;
      const spec: ParameterSpec = { key, dims: this.#engine.dims(value), init: "zeros" };
      const weight = this.#parameter(key, [spec], value, depth, true, true);
      this.#linears.set(handle, { handle, weight, bias: undefined });
      return weight;
    });
  }

  #parameter(
    name: string,
    specs: readonly ParameterSpec[],
    value: TensorHandle,
    depth: number,
    is_decayed: boolean,
    is_trained: boolean,
  ): Parameter {
    const size = specs.reduce((sum, { dims }) => sum + numel(dims), 0);
    return { name, specs, value, size, depth, is_decayed, is_trained, gradient: undefined };
  }
}

/** Adds a gradient; the parameter takes ownership of it. */
export function add_gradient(
  engine: TrainingEngine,
  parameter: Parameter | undefined,
  gradient: TensorHandle,
): void {
  if (!parameter?.is_trained) engine.free(gradient);
  else if (parameter.gradient === undefined) parameter.gradient = gradient;
  else {
    engine.accumulate(parameter.gradient, gradient, 1);
    engine.free(gradient);
  }
}

/** The model's engine, if it can train. */
export function training_engine(model: Pick<Learnable, "engine" | "dtype" | "device">): TrainingEngine {
  if (model.dtype === "int8") {
    throw new VitMsnError(
      "UNSUPPORTED",
      'An int8 model can\'t be trained: its weights are rounded too coarsely for small steps. Load it with dtype "float32".',
    );
  }
  if (!("adamw_step" in model.engine)) {
    throw new VitMsnError(
      "UNSUPPORTED",
      `Training needs an engine that computes gradients, but device "${model.device}" has none; load the model with device "wasm".`,
    );
  }
  return model.engine as TrainingEngine;
}

function frozen_keys(model: Learnable, freezing: Freezing): (key: string) => boolean {
  const { freeze_backbone = false, freeze_layers = 0, freeze_keys = [] } = freezing;
  const layers = model.config.num_hidden_layers;
  if (!Number.isInteger(freeze_layers) || freeze_layers < 0 || freeze_layers > layers) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `freeze_layers must be an integer from 0 to ${layers}, the number of layers; got ${freeze_layers}.`,
    );
  }
  const keys = model.weights.modules.flatMap((module) =>
    module.kind === "linear"
      ? module.parts.flatMap(({ weight, bias }) => [weight.key, ...(bias ? [bias.key] : [])])
      : [module.key],
  );
  const unused = freeze_keys.filter((start) => !keys.some((key) => key.startsWith(start)));
  if (unused.length > 0) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `freeze_keys: no parameter's key begins with ${unused.map((start) => JSON.stringify(start)).join(" or ")}; a key is, for example, "encoder.layer.0.attention.output.dense.weight".`,
    );
  }
  const bottom =
    freeze_layers > 0
      ? ["embeddings.", ...Array.from({ length: freeze_layers }, (_, i) => `encoder.layer.${i}.`)]
      : [];
  const starts = [...bottom, ...freeze_keys];
  return (key) =>
    (freeze_backbone && !key.startsWith("classifier.")) || starts.some((start) => key.startsWith(start));
}

function depth_of(name: string, layers: number): number {
  const layer = /^encoder\.layer\.(\d+)\./.exec(name)?.[1];
  if (layer !== undefined) return Number(layer) + 1;
  return name.startsWith("embeddings.") ? 0 : layers + 1;
}
