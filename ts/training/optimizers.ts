import type { TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import type { Parameter } from "./parameters.ts";

/** The optimisers, by transformers' names if it has them. */
export const OPTIMIZERS = ["adamw_torch", "sgd", "lars"] as const;
export type OptimizerName = (typeof OPTIMIZERS)[number];

/** The hyper-parameters that are constant during a training run. */
export interface OptimizerOptions {
  optim: OptimizerName;
  weight_decay: number;
  adam_beta1: number;
  adam_beta2: number;
  adam_epsilon: number;
  momentum: number;
  nesterov: boolean;
  lars_trust_coefficient: number;
}

/** What changes from step to step. */
export interface OptimizerStep {
  learning_rate: number;
  /** A factor on the gradients, for clipping. */
  gradient_scale: number;
  /** Overrides the optimiser's own. */
  weight_decay?: number;
}

/** LARS' guard against division by 0. */
const LARS_EPSILON = 1e-8;

/** The names of each optimiser's state tensors, which have the parameter's shape. */
const SLOTS: Readonly<Record<OptimizerName, readonly string[]>> = {
  adamw_torch: ["exp_avg", "exp_avg_sq"],
  sgd: ["momentum_buffer"],
  lars: ["momentum_buffer"],
};

/** Updates parameters from their gradients: AdamW (decoupled weight decay), SGD with momentum, or LARS. */
export class Optimizer {
  readonly slots: readonly string[];
  /** Steps done. */
  steps = 0;
  readonly #engine: TrainingEngine;
  readonly #options: OptimizerOptions;
  readonly #learning_rate_of: (parameter: Parameter) => number;
  readonly #states = new Map<Parameter, TensorHandle[]>();

  /** @param learning_rate_of each parameter's share of the learning rate, 1 for all of it. */
  constructor(
    engine: TrainingEngine,
    options: OptimizerOptions,
    learning_rate_of: (parameter: Parameter) => number,
  ) {
    this.#engine = engine;
    this.#options = options;
    this.#learning_rate_of = learning_rate_of;
    this.slots = SLOTS[options.optim];
  }

  /** One step of every parameter that has a gradient. */
  step(parameters: readonly Parameter[], step: OptimizerStep): void {
    this.steps++;
    for (const parameter of parameters) {
      const { gradient } = parameter;
      if (gradient === undefined) continue;
      const is_new = !this.#states.has(parameter);
      const learning_rate = step.learning_rate * this.#learning_rate_of(parameter);
      this.#update(parameter, gradient, this.state(parameter), is_new, { ...step, learning_rate });
    }
  }

  /** A parameter's state, by slot; zeros for a new parameter. */
  state(parameter: Parameter): readonly TensorHandle[] {
    const known = this.#states.get(parameter);
    if (known !== undefined) return known;
    const dims = this.#engine.dims(parameter.value);
    const state: TensorHandle[] = [];
    this.#states.set(parameter, state);
    for (const _ of this.slots) state.push(this.#engine.tensor(new Float32Array(parameter.size), dims));
    return state;
  }

  /** The parameters that have state. */
  known(): Iterable<Parameter> {
    return this.#states.keys();
  }

  /** Restores a parameter's state from a checkpoint. */
  restore(parameter: Parameter, values: readonly Float32Array[]): void {
    const dims = this.#engine.dims(parameter.value);
    this.#states.set(
      parameter,
      values.map((data) => this.#engine.tensor(data, dims)),
    );
  }

  dispose(): void {
    for (const state of this.#states.values()) for (const handle of state) this.#engine.free(handle);
    this.#states.clear();
  }

  #update(
    { value, is_decayed }: Parameter,
    gradient: TensorHandle,
    state: readonly TensorHandle[],
    is_new: boolean,
    step: OptimizerStep,
  ): void {
    const { optim, adam_beta1, adam_beta2, adam_epsilon, momentum, nesterov } = this.#options;
    const weight_decay = is_decayed ? (step.weight_decay ?? this.#options.weight_decay) : 0;
    const [first, second] = state as [TensorHandle, TensorHandle];
    switch (optim) {
      case "adamw_torch":
        this.#engine.adamw_step(value, gradient, first, second, {
          ...step,
          beta1: adam_beta1,
          beta2: adam_beta2,
          epsilon: adam_epsilon,
          weight_decay,
          step: this.steps,
        });
        break;
      case "sgd":
        this.#engine.sgd_step(value, gradient, first, {
          ...step,
          momentum,
          nesterov,
          weight_decay,
          first: is_new,
        });
        break;
      case "lars":
        this.#engine.lars_step(value, gradient, first, {
          ...step,
          momentum,
          weight_decay,
          trust_coefficient: this.#options.lars_trust_coefficient,
          epsilon: LARS_EPSILON,
        });
        break;
    }
  }
}
