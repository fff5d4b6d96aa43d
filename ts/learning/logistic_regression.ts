import type { Pacer } from "../engine/pacer.ts";
import { EngineProducts, is_worthwhile, type ProductEngine } from "./engine_products.ts";
import {
  add_scaled,
  CLASS_BLOCK,
  cholesky,
  cholesky_solve,
  dot,
  gram,
  inverse_of,
  orthonormal_basis,
  ROW_BLOCK,
  round_up,
  times_transposed,
  transposed_times,
} from "./linear_algebra.ts";

/** Row vectors in float64: `count` of `size` numbers each. */
export interface Rows {
  values: Float64Array;
  count: number;
  size: number;
}

/**
 * Features as the solver sees them. An optimal weight lies in the span of the features (its gradient is a sum
 * of them), so with fewer images than features, the problem is solved in an orthonormal basis of that span:
 * the same optimum, in at most as many dimensions as there are images.
 */
export interface Design {
  /** The features' coordinates. */
  rows: Rows;
  /** [rows.size, feature size], if a basis is used. */
  basis: Float64Array | undefined;
  feature_size: number;
}

export function make_design(features: Rows): Design {
  const { values, count, size } = features;
  if (count >= size) return { rows: features, basis: undefined, feature_size: size };
  const basis = orthonormal_basis(values, size);
  const rank = basis.length / size;
  const coordinates = new Float64Array(count * rank);
  for (let i = 0; i < count; i++) {
    const row = values.subarray(i * size, (i + 1) * size);
    for (let j = 0; j < rank; j++)
      coordinates[i * rank + j] = dot(row, basis.subarray(j * size, (j + 1) * size));
  }
  return { rows: { values: coordinates, count, size: rank }, basis, feature_size: size };
}

/** Weights [classes, coordinates] of a design as weights [classes, features]. */
export function to_features(weights: Float64Array, { basis, rows, feature_size }: Design): Float64Array {
  if (basis === undefined) return weights;
  const classes = weights.length / rows.size;
  const out = new Float64Array(classes * feature_size);
  for (let c = 0; c < classes; c++) {
    const row = out.subarray(c * feature_size, (c + 1) * feature_size);
    for (let j = 0; j < rows.size; j++) {
      const direction = basis.subarray(j * feature_size, (j + 1) * feature_size);
      add_scaled(row, weights[c * rows.size + j] as number, direction);
    }
  }
  return out;
}

export interface LogisticOptions {
  /** λ of the objective; above 0. */
  penalty: number;
  /** Whether each class has a bias, which isn't penalised. */
  intercept: boolean;
  /** Stops when the gradient's norm is at most this share of its norm at zero weights. */
  tolerance: number;
  /** The maximum number of Newton steps. */
  max_iterations: number;
  /** Where to start; default zeros. */
  start?: Solution | undefined;
  pacer: Pacer;
  /** Computes the products of large problems. */
  engine?: ProductEngine | undefined;
  on_iteration?: ((iteration: number, gradient: number) => void) | undefined;
}

export interface Solution {
  /** [classes, size]. */
  weights: Float64Array;
  /** [classes]; zeros without an intercept. */
  bias: Float64Array;
  iterations: number;
  /** The objective's value. */
  loss: number;
  /** The gradient's norm relative to its norm at zero weights. */
  gradient: number;
  converged: boolean;
}

/**
 * A Newton system is solved to this share of the gradient: cheap steps far from the optimum, still linear
 * near it.
 */
const FORCING = 0.2;
const MAX_CG_STEPS = 500;
/** The relative gradient down to which float32 is precise enough for it: some ten times its rounding errors. */
const COARSE = 1e-5;
/** The preconditioner is computed again once the curvature has changed by this factor. */
const STALE = 2;
/** Armijo's share of the predicted descent. */
const DESCENT = 1e-4;
const MAX_HALVINGS = 40;
/** After this many steps, logits are computed afresh. */
const MAX_AGE = 10;

/**
 * Multinomial logistic regression with an L2 penalty: minimises (1/n) Σ cross-entropy + (λ/2n) ‖W‖² over W
 * (and the bias, which isn't penalised). The objective is MSN's low-shot evaluation's (logistic_eval.py with
 * cyanure); scikit-learn's LogisticRegression has C = 1/λ.
 *
 * Newton's method: conjugate gradients on H·s = -g, with H only applied, preconditioned by w·XᵀX + λI, where
 * w is the mean curvature p(1-p); Armijo's rule shortens a step. λ > 0 makes the optimum unique. Reference:
 * Nocedal and Wright, "Numerical Optimization", 7.1.
 *
 * @param classes the class of each row, from 0 to num_classes - 1.
 */
export async function fit_logistic_regression(
  rows: Rows,
  classes: Int32Array,
  num_classes: number,
  options: LogisticOptions,
): Promise<Solution> {
  const solver = new Solver(rows, classes, num_classes, options);
  try {
    return await solver.run();
  } finally {
    solver.dispose();
  }
}

/** The objective at some weights. */
interface Evaluated {
  weights: Float64Array;
  logits: Float64Array;
  loss: number;
  probs: Float64Array;
}

/** A point on the way to the optimum. */
interface Point extends Evaluated {
  gradient: Float64Array;
  /** The gradient's. */
  norm: number;
}

/** All sums are over images: the objective and gradient are divided by n only in the results. */
class Solver {
  readonly #x: Float64Array;
  readonly #targets: Float64Array;
  readonly #count: number;
  readonly #size: number;
  /** Features, and the constant 1 of the bias. */
  readonly #columns: number;
  readonly #num_classes: number;
  readonly #padded_classes: number;
  readonly #options: LogisticOptions;
  readonly #gram: Float64Array;
  #factor: Float64Array | undefined;
  #factor_curvature = 0;
  readonly #products: EngineProducts | undefined;

  constructor(rows: Rows, classes: Int32Array, num_classes: number, options: LogisticOptions) {
    this.#count = rows.count;
    this.#size = rows.size;
    this.#columns = rows.size + (options.intercept ? 1 : 0);
    this.#num_classes = num_classes;
    this.#padded_classes = round_up(num_classes, CLASS_BLOCK);
    this.#options = options;
    const padded_rows = round_up(rows.count, ROW_BLOCK);
    this.#x = new Float64Array(padded_rows * this.#columns);
    this.#targets = new Float64Array(padded_rows * this.#padded_classes);
    for (let i = 0; i < rows.count; i++) {
      this.#x.set(rows.values.subarray(i * rows.size, (i + 1) * rows.size), i * this.#columns);
      if (options.intercept) this.#x[i * this.#columns + rows.size] = 1;
      this.#targets[i * this.#padded_classes + (classes[i] as number)] = 1;
    }
    this.#gram = gram(this.#x, this.#columns);
    const sizes = { rows: rows.count, columns: this.#columns, classes: num_classes };
    if (options.engine !== undefined && is_worthwhile(sizes))
      this.#products = new EngineProducts(
        options.engine,
        this.#x.subarray(0, rows.count * this.#columns),
        sizes,
      );
  }

  dispose(): void {
    this.#products?.dispose();
  }

  async run(): Promise<Solution> {
    const { tolerance, max_iterations, pacer, on_iteration } = this.#options;
    const zero = new Float64Array(this.#padded_classes * this.#columns);
    let is_coarse = this.#products !== undefined;
    let point = await this.#at(zero, new Float64Array(this.#targets.length), is_coarse);
    // The features of every class have the same sum (one class, or all features zero): zero is the optimum.
    const scale = point.norm === 0 ? 1 : point.norm;
    const start = this.#start();
    if (start !== undefined) point = await this.#at(start, this.#logits(start), is_coarse);
    let iterations = 0;
    /** Iterations since the logits were computed from the weights: sums of steps drift. */
    let age = 0;
    while (point.norm > tolerance * scale && iterations < max_iterations) {
      if (is_coarse && point.norm <= COARSE * scale) {
        is_coarse = false;
        age = 0;
        point = await this.#at(point.weights, this.#logits(point.weights), is_coarse);
        continue;
      }
      iterations++;
      const step = await this.#newton_step(point.gradient, point.norm, point.probs);
      // A step's rounding errors are as small as the step.
      const logit_step = this.#products === undefined ? this.#logits(step) : await this.#coarse_logits(step);
      const moved = this.#line_search(point, step, logit_step, dot(point.gradient, step));
      if (moved === undefined) {
        if (!is_coarse) break; // no descent beyond rounding
        is_coarse = false;
        age = 0;
        point = await this.#at(point.weights, this.#logits(point.weights), is_coarse);
        continue;
      }
      age = (age + 1) % MAX_AGE;
      point =
        age === 0 && !is_coarse
          ? await this.#at(moved.weights, this.#logits(moved.weights), is_coarse)
          : await this.#with_gradient(moved, is_coarse);
      on_iteration?.(iterations, point.norm / scale);
      await pacer.step();
    }
    const { weights, loss, norm } = point;
    return this.#solution(weights, iterations, loss, norm / scale);
  }

  #at(weights: Float64Array, logits: Float64Array, is_coarse: boolean): Promise<Point> {
    return this.#with_gradient(this.#evaluate(weights, logits), is_coarse);
  }

  /** @param is_coarse whether the gradient is computed in float32. */
  async #with_gradient(evaluated: Evaluated, is_coarse: boolean): Promise<Point> {
    const { weights, probs } = evaluated;
    const gradient = is_coarse ? await this.#coarse_gradient(weights, probs) : this.#gradient(weights, probs);
    return { ...evaluated, gradient, norm: Math.sqrt(dot(gradient, gradient)) };
  }

  async #coarse_gradient(weights: Float64Array, probs: Float64Array): Promise<Float64Array> {
    const errors = new Float32Array(this.#count * this.#num_classes);
    const stride = this.#padded_classes;
    for (let i = 0; i < this.#count; i++)
      for (let c = 0; c < this.#num_classes; c++) {
        const at = i * stride + c;
        errors[i * this.#num_classes + c] = (probs[at] as number) - (this.#targets[at] as number);
      }
    const gradient = new Float64Array(weights.length);
    gradient.set(await (this.#products as EngineProducts).transposed_times(errors));
    this.#add_penalty(gradient, weights);
    return gradient;
  }

  /** The logits in float32, with the padding of classes and rows. */
  async #coarse_logits(weights: Float64Array): Promise<Float64Array> {
    const products = this.#products as EngineProducts;
    const values = await products.times_transposed(this.#without_padding(weights));
    const out = new Float64Array(this.#targets.length);
    const classes = this.#num_classes;
    for (let i = 0; i < this.#count; i++)
      out.set(values.subarray(i * classes, (i + 1) * classes), i * this.#padded_classes);
    return out;
  }

  #start(): Float64Array | undefined {
    const { start } = this.#options;
    if (start === undefined) return undefined;
    const weights = new Float64Array(this.#padded_classes * this.#columns);
    for (let c = 0; c < this.#num_classes; c++) {
      weights.set(start.weights.subarray(c * this.#size, (c + 1) * this.#size), c * this.#columns);
      if (this.#options.intercept) weights[c * this.#columns + this.#size] = start.bias[c] as number;
    }
    return weights;
  }

  #solution(padded: Float64Array, iterations: number, loss: number, gradient: number): Solution {
    const weights = new Float64Array(this.#num_classes * this.#size);
    const bias = new Float64Array(this.#num_classes);
    for (let c = 0; c < this.#num_classes; c++) {
      const row = padded.subarray(c * this.#columns, (c + 1) * this.#columns);
      weights.set(row.subarray(0, this.#size), c * this.#size);
      if (this.#options.intercept) bias[c] = row[this.#size] as number;
    }
    const converged = gradient <= this.#options.tolerance;
    return { weights, bias, iterations, loss: loss / this.#count, gradient, converged };
  }

  #logits(weights: Float64Array): Float64Array {
    const out = new Float64Array(this.#targets.length);
    times_transposed(this.#x, weights, this.#columns, out);
    return out;
  }

  /** The objective times n, and the probabilities; those of padded rows and classes are 0. */
  #evaluate(weights: Float64Array, logits: Float64Array): Evaluated {
    const stride = this.#padded_classes;
    const probs = new Float64Array(logits.length);
    let loss = 0.5 * this.#options.penalty * this.#penalised_square(weights);
    for (let i = 0; i < this.#count; i++) {
      const start = i * stride;
      let max = -Infinity;
      for (let c = 0; c < this.#num_classes; c++) max = Math.max(max, logits[start + c] as number);
      let sum = 0;
      let target = 0;
      for (let c = 0; c < this.#num_classes; c++) {
        const shifted = (logits[start + c] as number) - max;
        const value = Math.exp(shifted);
        probs[start + c] = value;
        sum += value;
        target += shifted * (this.#targets[start + c] as number);
      }
      for (let c = 0; c < this.#num_classes; c++) probs[start + c] = (probs[start + c] as number) / sum;
      loss += Math.log(sum) - target;
    }
    return { weights, logits, loss, probs };
  }

  #penalised_square(weights: Float64Array): number {
    let sum = dot(weights, weights);
    if (this.#options.intercept) {
      for (let at = this.#size; at < weights.length; at += this.#columns) sum -= (weights[at] as number) ** 2;
    }
    return sum;
  }

  /** out += λ·w, except for biases. */
  #add_penalty(out: Float64Array, weights: Float64Array): void {
    const { penalty, intercept } = this.#options;
    add_scaled(out, penalty, weights);
    if (!intercept) return;
    for (let at = this.#size; at < out.length; at += this.#columns)
      out[at] = (out[at] as number) - penalty * (weights[at] as number);
  }

  #gradient(weights: Float64Array, probs: Float64Array): Float64Array {
    const errors = probs.slice();
    add_scaled(errors, -1, this.#targets);
    const out = new Float64Array(weights.length);
    transposed_times(errors, this.#x, this.#columns, out);
    this.#add_penalty(out, weights);
    return out;
  }

  /** The Hessian times `v`: Xᵀ(P ∘ (Xv - Σ P ∘ Xv)) + λv. */
  async #hessian_times(v: Float64Array, probs: Float64Array): Promise<Float64Array> {
    const out = new Float64Array(v.length);
    if (this.#products === undefined) {
      const moved = this.#logits(v);
      this.#weigh(moved, this.#padded_classes, probs);
      transposed_times(moved, this.#x, this.#columns, out);
    } else {
      const moved = await this.#products.times_transposed(this.#without_padding(v));
      this.#weigh(moved, this.#num_classes, probs);
      out.set(await this.#products.transposed_times(moved));
    }
    this.#add_penalty(out, v);
    return out;
  }

  /** Changes `moved` [rows, stride] to P ∘ (moved - Σ P ∘ moved). */
  #weigh(moved: Float64Array | Float32Array, stride: number, probs: Float64Array): void {
    const skip = this.#padded_classes;
    for (let start = 0, from = 0; start < moved.length; start += stride, from += skip) {
      let mean = 0;
      for (let c = 0; c < stride; c++) mean += (probs[from + c] as number) * (moved[start + c] as number);
      for (let c = 0; c < stride; c++) {
        const at = start + c;
        moved[at] = (probs[from + c] as number) * ((moved[at] as number) - mean);
      }
    }
  }

  /** The rows of the classes that there are, in float32. */
  #without_padding(v: Float64Array): Float32Array {
    return Float32Array.from(v.subarray(0, this.#num_classes * this.#columns));
  }

  /** Preconditioned conjugate gradients on H·s = -g. */
  async #newton_step(gradient: Float64Array, norm: number, probs: Float64Array): Promise<Float64Array> {
    const step = new Float64Array(gradient.length);
    const residual = gradient.map((value) => -value);
    const factor = this.#factor_for(this.#mean_curvature(probs));
    let preconditioned = await this.#precondition(factor, residual);
    const direction = preconditioned.slice();
    let energy = dot(residual, preconditioned);
    for (let k = 0; k < MAX_CG_STEPS && Math.sqrt(dot(residual, residual)) > FORCING * norm; k++) {
      const product = await this.#hessian_times(direction, probs);
      const curvature = dot(direction, product);
      if (!(curvature > 0)) break; // rounding
      add_scaled(step, energy / curvature, direction);
      add_scaled(residual, -energy / curvature, product);
      preconditioned = await this.#precondition(factor, residual);
      const next = dot(residual, preconditioned);
      for (let i = 0; i < direction.length; i++)
        direction[i] = (preconditioned[i] as number) + (next / energy) * (direction[i] as number);
      energy = next;
      await this.#options.pacer.step();
    }
    return step;
  }

  async #precondition(factor: Float64Array, residual: Float64Array): Promise<Float64Array> {
    const out = residual.slice();
    if (this.#products === undefined) cholesky_solve(factor, this.#columns, out);
    else out.set(await this.#products.precondition(this.#without_padding(residual)));
    return out;
  }

  #factor_for(curvature: number): Float64Array {
    const change = curvature / this.#factor_curvature;
    if (this.#factor === undefined || change > STALE || change < 1 / STALE) {
      this.#factor = this.#factorise(curvature);
      this.#products?.set_inverse(inverse_of(this.#factor, this.#columns));
      this.#factor_curvature = curvature;
    }
    return this.#factor;
  }

  /** The mean of p(1 - p). */
  #mean_curvature(probs: Float64Array): number {
    let sum = 0;
    for (let i = 0; i < probs.length; i++) sum += (probs[i] as number) * (1 - (probs[i] as number));
    return Math.max(sum / (this.#count * this.#num_classes), Number.MIN_VALUE);
  }

  #factorise(curvature: number): Float64Array {
    const size = this.#columns;
    const matrix = this.#gram.map((value) => value * curvature);
    // 1e-11 of the trace protects the bias row, which has no penalty, from rounding.
    let trace = 0;
    for (let i = 0; i < size; i++) trace += matrix[i * size + i] as number;
    const diagonal = this.#options.penalty + (1e-11 * trace) / size;
    for (let i = 0; i < size; i++) matrix[i * size + i] = (matrix[i * size + i] as number) + diagonal;
    return cholesky(matrix, size);
  }

  /** The point to move to along a step, or undefined if rounding hides any descent. */
  #line_search(
    { weights, logits, loss }: Point,
    step: Float64Array,
    logit_step: Float64Array,
    slope: number,
  ): Evaluated | undefined {
    if (!(slope < 0)) return undefined;
    // Near the optimum a true descent is smaller than the objective's rounding, and the whole step is right.
    const rounding = 1e-13 * Math.abs(loss);
    for (let halvings = 0, share = 1; halvings < MAX_HALVINGS; halvings++, share /= 2) {
      const moved = weights.slice();
      add_scaled(moved, share, step);
      const moved_logits = logits.slice();
      add_scaled(moved_logits, share, logit_step);
      const next = this.#evaluate(moved, moved_logits);
      if (next.loss <= loss + DESCENT * share * slope + rounding) return next;
    }
    return undefined;
  }
}
