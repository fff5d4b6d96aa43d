import type { LinearHandle, TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";

/** The ops of an engine that a fit uses. */
export type ProductEngine = Pick<
  TrainingEngine,
  "tensor" | "linear_weights" | "set_rows" | "linear" | "linear_backward_weights" | "read" | "free"
>;

/** Multiply-adds of a product from which an engine is faster than JavaScript, copies included. */
const WORTHWHILE = 4e6;

/** A problem's sizes. */
export interface ProductSizes {
  rows: number;
  columns: number;
  classes: number;
}

export function is_worthwhile({ rows, columns, classes }: ProductSizes): boolean {
  return rows * columns * classes >= WORTHWHILE;
}

/**
 * The products of conjugate gradients on an engine, in float32. Their steps need a digit or two only; the gradients, which
 * decide where the optimum is, are computed in float64.
 */
export class EngineProducts {
  readonly #engine: ProductEngine;
  readonly #sizes: ProductSizes;
  readonly #x: TensorHandle;
  #inverse: LinearHandle | undefined;

  /** @param x the features [rows, columns]. */
  constructor(engine: ProductEngine, x: Float64Array, sizes: ProductSizes) {
    this.#engine = engine;
    this.#sizes = sizes;
    this.#x = engine.tensor(Float32Array.from(x), [sizes.rows, sizes.columns]);
  }

  /** x · vᵀ [rows, classes], with v [classes, columns]. */
  async times_transposed(v: Float32Array): Promise<Float32Array> {
    const weights = this.#linear(v, this.#sizes.classes);
    try {
      return await this.#read(this.#engine.linear(this.#x, weights, "identity"));
    } finally {
      this.#engine.free(weights);
    }
  }

  /** qᵀ · x [classes, columns], with q [rows, classes]. */
  async transposed_times(q: Float32Array): Promise<Float32Array> {
    const { rows, classes } = this.#sizes;
    const grad = this.#engine.tensor(q, [rows, classes]);
    const { weight, bias } = this.#engine.linear_backward_weights(grad, this.#x);
    this.#engine.free(grad);
    this.#engine.free(bias);
    return this.#read(weight);
  }

  /** Sets the inverse [columns, columns] of the preconditioner, which is symmetric. */
  set_inverse(inverse: Float64Array): void {
    if (this.#inverse !== undefined) this.#engine.free(this.#inverse);
    this.#inverse = this.#linear(Float32Array.from(inverse), this.#sizes.columns);
  }

  /** The preconditioner's inverse times each row of `residual` [classes, columns]. */
  async precondition(residual: Float32Array): Promise<Float32Array> {
    const { classes, columns } = this.#sizes;
    const rows = this.#engine.tensor(residual, [classes, columns]);
    const product = this.#engine.linear(rows, this.#inverse as LinearHandle, "identity");
    this.#engine.free(rows);
    return this.#read(product);
  }

  dispose(): void {
    this.#engine.free(this.#x);
    if (this.#inverse !== undefined) this.#engine.free(this.#inverse);
  }

  #linear(weight: Float32Array, rows: number): LinearHandle {
    const weights = this.#engine.linear_weights(rows, this.#sizes.columns, "float32", false);
    const bytes = new Uint8Array(weight.buffer, weight.byteOffset, weight.byteLength);
    this.#engine.set_rows(weights, 0, bytes, "float32");
    return weights;
  }

  async #read(handle: TensorHandle): Promise<Float32Array> {
    try {
      return await this.#engine.read(handle);
    } finally {
      this.#engine.free(handle);
    }
  }
}
