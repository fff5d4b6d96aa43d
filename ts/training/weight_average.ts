import type { TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import type { Parameter } from "./parameters.ts";
import { copy_of, overwrite } from "./tensor_values.ts";

/** An exponential moving average of the trained parameters; timm's ModelEmaV2. */
export class WeightAverage {
  readonly #engine: TrainingEngine;
  readonly #decay: number;
  readonly #averages = new Map<Parameter, TensorHandle>();

  constructor(engine: TrainingEngine, parameters: readonly Parameter[], decay: number) {
    this.#engine = engine;
    this.#decay = decay;
    for (const parameter of parameters) this.#averages.set(parameter, copy_of(engine, parameter.value));
  }

  /** average = decay · average + (1 − decay) · value, after an optimiser step. */
  update(): void {
    for (const [{ value }, average] of this.#averages) this.#engine.ema(average, value, this.#decay);
  }

  /** Exchanges the averages and the parameters' values, bit for bit. */
  swap(): void {
    for (const [{ value }, average] of this.#averages) {
      const former = copy_of(this.#engine, value);
      overwrite(this.#engine, value, average);
      overwrite(this.#engine, average, former);
      this.#engine.free(former);
    }
  }

  entries(): Iterable<[Parameter, TensorHandle]> {
    return this.#averages;
  }

  dispose(): void {
    for (const average of this.#averages.values()) this.#engine.free(average);
    this.#averages.clear();
  }
}
