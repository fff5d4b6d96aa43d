import type { LinearHandle, TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import { invalid_argument } from "../errors.ts";
import type { LinearPart, LinearSpec } from "../model/architecture.ts";
import type { Weights } from "../model/weights.ts";
import { Random } from "./random.ts";
import type { Adapter } from "./tape.ts";
import { copy_of } from "./tensor_values.ts";

/** LoRA's options, by the names of peft's LoraConfig. */
export interface LoraOptions {
  lora_r: number;
  lora_alpha: number;
  lora_dropout: number;
  lora_target_modules: readonly string[];
  seed: number;
}

/** A linear layer of the model with its adapter. Query, key and value are fused, and so are their adapters. */
export interface AdaptedLayer extends Adapter {
  readonly module: LinearSpec;
  readonly handle: LinearHandle;
  /** Where `up` may differ from 0, if it is fused: a part's rows read only the part's own `lora_r` values. */
  readonly mask: TensorHandle | undefined;
}

/**
 * Low-rank adapters (Hu et al., 2021) of a model's linear layers, as peft computes them: a layer's result grows by
 * lora_alpha / lora_r · B·A·dropout(x). A is drawn from U(−1/√in, 1/√in), B begins with zeros. The layer itself is frozen.
 */
export class LoraAdapters {
  readonly layers: readonly AdaptedLayer[];
  readonly #engine: TrainingEngine;
  readonly #by_handle: ReadonlyMap<LinearHandle, AdaptedLayer>;
  /** The layers' own weights while the merged ones are in place. */
  #own = new Map<AdaptedLayer, TensorHandle>();

  /** @throws VitMsnError INVALID_ARGUMENT for a target that no layer has. */
  constructor(engine: TrainingEngine, weights: Weights, options: LoraOptions) {
    this.#engine = engine;
    const targets = options.lora_target_modules;
    const linears = weights.modules.filter(
      (module): module is LinearSpec => module.kind === "linear" && module.name.startsWith("encoder."),
    );
    const names = linears.flatMap(({ parts }) => parts.map(name_of));
    const unused = targets.filter((target) => !names.some((name) => is_target(name, [target])));
    if (unused.length > 0 || targets.length === 0) {
      throw invalid_argument(
        `lora_target_modules: no layer's name ends in ${unused.map((name) => JSON.stringify(name)).join(" or ")}; use some of ` +
          "query, key, value, attention.output.dense, intermediate.dense, output.dense or dense.",
        "lora_target_modules",
      );
    }
    this.layers = linears.flatMap((module, i) => {
      const parts = module.parts.filter((part) => is_target(name_of(part), targets));
      return parts.length > 0 ? this.#adapt(module, weights, parts, options, i) : [];
    });
    this.#by_handle = new Map(this.layers.map((layer) => [layer.handle, layer]));
  }

  of(handle: LinearHandle): AdaptedLayer | undefined {
    return this.#by_handle.get(handle);
  }

  /** Adds the adapters to the layers' weights, for passes without a tape. */
  merge(): void {
    for (const layer of this.layers) {
      const own = this.#engine.linear_weight(layer.handle);
      this.#own.set(layer, own);
      const merged = copy_of(this.#engine, own);
      const up = this.#engine.linear_weight(layer.up);
      const product = this.#engine.linear_backward_input(up, layer.down);
      this.#engine.accumulate(merged, product, layer.scale);
      this.set_weight(layer, merged);
      for (const handle of [product, up, merged]) this.#engine.free(handle);
    }
  }

  /** Takes the adapters out again: the layers' weights are what they were, bit for bit. */
  unmerge(): void {
    for (const [layer, own] of this.#own) {
      this.set_weight(layer, own);
      this.#engine.free(own);
    }
    this.#own.clear();
  }

  /** Sets a layer's own weight, not its bias. */
  set_weight({ module, handle }: AdaptedLayer, weight: TensorHandle): void {
    const has_bias = module.parts.some(({ bias }) => bias !== undefined);
    const bias = has_bias ? this.#engine.linear_bias(handle) : undefined;
    this.#engine.set_linear(handle, weight, bias);
    if (bias !== undefined) this.#engine.free(bias);
  }

  /** Frees the adapters; layers that they are merged into stay so. */
  dispose(): void {
    for (const own of this.#own.values()) this.#engine.free(own);
    this.#own.clear();
    for (const { down, up, mask } of this.layers) {
      for (const handle of [down, up, ...(mask === undefined ? [] : [mask])]) this.#engine.free(handle);
    }
  }

  #adapt(
    module: LinearSpec,
    weights: Weights,
    parts: readonly LinearPart[],
    { lora_r, lora_alpha, lora_dropout, seed }: LoraOptions,
    index: number,
  ): AdaptedLayer {
    const engine = this.#engine;
    const { in_features, out_features } = module;
    const rank = lora_r * parts.length;
    const random = new Random(seed, index);
    const bound = 1 / Math.sqrt(in_features);
    const down_values = Float32Array.from({ length: rank * in_features }, () =>
      random.uniform(-bound, bound),
    );
    const down = engine.linear_weights(rank, in_features, "float32", false);
    engine.set_rows(down, 0, new Uint8Array(down_values.buffer), "float32");
    const up = engine.linear_weights(out_features, rank, "float32", false);
    engine.set_rows(up, 0, new Uint8Array(4 * out_features * rank), "float32");
    const mask =
      module.parts.length > 1
        ? engine.tensor(block_mask(parts, out_features, lora_r), [out_features, rank])
        : undefined;
    return {
      module,
      handle: weights.linear(module.name),
      down,
      up,
      mask,
      scale: lora_alpha / lora_r,
      dropout: lora_dropout,
    };
  }
}

/** "encoder.layer.0.attention.attention.query", as peft knows the layer. */
function name_of({ weight }: LinearPart): string {
  return weight.key.replace(/\.weight$/, "");
}

/** peft's rule: a target is a name, or its end. */
function is_target(name: string, targets: readonly string[]): boolean {
  return targets.some((target) => name === target || name.endsWith(`.${target}`));
}

/** 1 where a part's rows meet its own columns, else 0. */
function block_mask(parts: readonly LinearPart[], out_features: number, lora_r: number): Float32Array {
  const rank = lora_r * parts.length;
  const mask = new Float32Array(out_features * rank);
  for (const [i, { row, rows }] of parts.entries()) {
    for (let y = row; y < row + rows; y++) mask.fill(1, y * rank + i * lora_r, y * rank + (i + 1) * lora_r);
  }
  return mask;
}
