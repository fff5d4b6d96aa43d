import fc from "fast-check";
import { ViTMSNModel } from "vit-msn";
import { describe, expect, test, vi } from "vitest";
import { Pacer } from "../../ts/engine/pacer.ts";
import type { TrainingEngine } from "../../ts/engine/training_engine.ts";
import { VitMsnError } from "../../ts/errors.ts";
import { cross_validate, probabilities } from "../../ts/learning/cross_validation.ts";
import { center_and_normalize } from "../../ts/learning/features.ts";
import { type LogisticPlan, plan_fit } from "../../ts/learning/fit_options.ts";
import {
  cholesky,
  cholesky_solve,
  dot,
  gram,
  inverse_of,
  orthonormal_basis,
  times_transposed,
  transposed_times,
} from "../../ts/learning/linear_algebra.ts";
import { fit_logistic_regression, make_design, to_features } from "../../ts/learning/logistic_regression.ts";
import { abort_at_look } from "../support/signals.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";

const WIDTH = 128;

/** Numbers in [-1, 1] that look random. */
function noise(i: number, seed: number): number {
  const x = Math.sin(12.9898 * i + 78.233 * seed) * 43758.5453;
  return 2 * (x - Math.floor(x)) - 1;
}

/** Real features, prepared as MSN's evaluation does, and their labels. */
async function read_features() {
  const tensors = await read_tensors("models/fashion/test1000.safetensors");
  const cls = tensors.get("out.cls_before_norm")?.data as Float32Array;
  const labels = tensors.get("labels")?.data as Int32Array;
  const feature = (i: number) => center_and_normalize(cls.slice(i * WIDTH, (i + 1) * WIDTH));
  return { labels, feature };
}

/** The first `shots` images of each class, class by class. */
async function first_of_each(shots: number, num_classes: number) {
  const { labels, feature } = await read_features();
  const indices = Array.from({ length: num_classes }, (_, c) =>
    Array.from(labels.keys())
      .filter((i) => labels[i] === c)
      .slice(0, shots),
  ).flat();
  const values = new Float64Array(indices.length * WIDTH);
  for (const [row, i] of indices.entries()) values.set(feature(i), row * WIDTH);
  const classes = Int32Array.from(indices, (i) => labels[i] as number);
  return { rows: { values, count: indices.length, size: WIDTH }, classes, feature };
}

function options(penalty: number, intercept: boolean) {
  return { penalty, intercept, tolerance: 1e-9, max_iterations: 100, pacer: new Pacer(undefined, "Test") };
}

describe("logistic regression", () => {
  /** As in test/reference/make_logistic_regression.py. */
  test.each([
    ["one", 1, 10, 0.0025, false],
    ["few", 5, 10, 0.0025, false],
    ["few_intercept", 5, 10, 0.0025, true],
    ["many", 20, 10, 0.075, false],
    ["many_intercept", 20, 10, 0.075, true],
    ["weak", 20, 10, 0.00025, false],
    ["three", 7, 3, 1, true],
  ] as const)(
    "%s: scikit-learn's weights and probabilities",
    async (name, shots, num_classes, penalty, intercept) => {
      const expected = await read_tensors("test/fixtures/few_shot/logistic_regression.safetensors");
      const { rows, classes, feature } = await first_of_each(shots, num_classes);
      const design = make_design(rows);
      const solution = await fit_logistic_regression(
        design.rows,
        classes,
        num_classes,
        options(penalty, intercept),
      );
      expect(solution.converged).toBe(true);
      const weights = to_features(solution.weights, design);
      const wanted = expected.get(`${name}.weight`)?.data as Float32Array;
      const largest = wanted.reduce((max, w) => Math.max(max, Math.abs(w)), 0);
      // scikit-learn's are recorded as float32.
      expect(max_difference(weights, wanted)).toBeLessThan(1e-5 * largest);
      expect(max_difference(solution.bias, expected.get(`${name}.bias`)?.data as Float32Array)).toBeLessThan(
        1e-5,
      );
      const probs = expected.get(`${name}.probs`)?.data as Float32Array;
      for (let i = 0; i < 100; i++) {
        const found = probabilities({ ...solution, weights }, Float64Array.from(feature(10 * i + 7)));
        expect(max_difference(found, probs.subarray(i * num_classes, (i + 1) * num_classes))).toBeLessThan(
          1e-5,
        );
      }
    },
  );

  test("where images are fewer than features, the basis of their span gives the same optimum", async () => {
    const { rows, classes } = await first_of_each(3, 10);
    const design = make_design(rows);
    expect(design.rows.size).toBe(30);
    const plain = await fit_logistic_regression(rows, classes, 10, options(0.0025, true));
    const reduced = await fit_logistic_regression(design.rows, classes, 10, options(0.0025, true));
    expect(max_difference(to_features(reduced.weights, design), plain.weights)).toBeLessThan(1e-6);
    expect(max_difference(reduced.bias, plain.bias)).toBeLessThan(1e-6);
  });

  test("is the same bit for bit a second time, and for classes in another order", async () => {
    const { rows, classes } = await first_of_each(4, 3);
    const first = await fit_logistic_regression(rows, classes, 3, options(0.075, false));
    const second = await fit_logistic_regression(rows, classes, 3, options(0.075, false));
    expect(second).toEqual(first);
    const renamed = classes.map((c) => 2 - c);
    const { weights } = await fit_logistic_regression(rows, renamed, 3, options(0.075, false));
    const last = weights.subarray(2 * WIDTH, 3 * WIDTH);
    expect(max_difference(last, first.weights.subarray(0, WIDTH))).toBeLessThan(1e-9);
  });

  test("random problems of any size end where the gradient is zero", async () => {
    const problem = fc.record({
      count: fc.integer({ min: 5, max: 23 }),
      size: fc.integer({ min: 1, max: 17 }),
      num_classes: fc.integer({ min: 2, max: 5 }),
      penalty: fc.constantFrom(1e-4, 0.075, 10),
      intercept: fc.boolean(),
      seed: fc.integer({ min: 0, max: 1e6 }),
    });
    await fc.assert(
      fc.asyncProperty(problem, async ({ count, size, num_classes, penalty, intercept, seed }) => {
        const values = Float64Array.from({ length: count * size }, (_, i) => noise(i, seed));
        const classes = Int32Array.from({ length: count }, (_, i) => i % num_classes);
        const design = make_design({ values, count, size });
        const solution = await fit_logistic_regression(
          design.rows,
          classes,
          num_classes,
          options(penalty, intercept),
        );
        const weights = to_features(solution.weights, design);
        const gradient = weights.map((w) => penalty * w);
        for (let i = 0; i < count; i++) {
          const row = values.subarray(i * size, (i + 1) * size);
          const probs = probabilities({ ...solution, weights }, row);
          for (let c = 0; c < num_classes; c++) {
            const error = (probs[c] as number) - (classes[i] === c ? 1 : 0);
            for (let k = 0; k < size; k++)
              gradient[c * size + k] = (gradient[c * size + k] as number) + error * (row[k] as number);
          }
        }
        expect(Math.max(...gradient.map(Math.abs))).toBeLessThan(1e-7 * count);
      }),
      { numRuns: 60, seed: 7 },
    );
  });

  test("features that are all zero, or duplicates, have an optimum too", async () => {
    const zeros = { values: new Float64Array(4 * 3), count: 4, size: 3 };
    const classes = Int32Array.of(0, 1, 0, 1);
    const flat = await fit_logistic_regression(make_design(zeros).rows, classes, 2, options(0.1, false));
    expect([flat.converged, flat.loss]).toEqual([true, Math.log(2)]);
    const values = Float64Array.from({ length: 6 * 2 }, (_, i) => i % 2);
    const same = { values, count: 6, size: 2 };
    const solution = await fit_logistic_regression(
      same,
      Int32Array.of(0, 1, 1, 0, 1, 0),
      2,
      options(1e-8, false),
    );
    expect(solution.converged).toBe(true);
    expect(solution.loss).toBeCloseTo(Math.log(2), 12);
  });

  test("can be aborted, and reports its steps", async () => {
    const { rows, classes } = await first_of_each(5, 10);
    const controller = new AbortController();
    const pacer = new Pacer(controller.signal, "Fitting");
    const seen: number[] = [];
    const fitting = fit_logistic_regression(rows, classes, 10, {
      ...options(0.0025, false),
      pacer,
      on_iteration: (iteration) => {
        seen.push(iteration);
        if (iteration === 2) controller.abort();
      },
    });
    const error = await fitting.catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(VitMsnError);
    expect((error as VitMsnError).code).toBe("ABORTED");
    expect(seen).toEqual([1, 2]);
  });
});

describe("on an engine", () => {
  const NUM_CLASSES = 30;

  /** Enough for the engine's products: 30 classes of 12 noisy images with 512 features. */
  function large_problem() {
    const size = 512;
    const count = 12 * NUM_CLASSES;
    const classes = Int32Array.from({ length: count }, (_, i) => i % NUM_CLASSES);
    const values = Float64Array.from({ length: count * size }, (_, at) => {
      const [i, k] = [Math.floor(at / size), at % size];
      return (noise(at, 1) + noise(k, 10 + (i % NUM_CLASSES))) / Math.sqrt(size);
    });
    return { rows: { values, count, size }, classes };
  }

  test.each([false, true])(
    "finds the same optimum, and leaves nothing behind: intercept %o",
    async (intercept) => {
      const { rows, classes } = large_problem();
      const model = await ViTMSNModel.from_config({
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
      });
      const engine = model.engine as TrainingEngine;
      const used = vi.spyOn(engine, "linear_backward_weights");
      const { handles, bytes } = model.memory();
      const given = { ...options(0.01, intercept), tolerance: 1e-8 };
      const alone = await fit_logistic_regression(rows, classes, NUM_CLASSES, given);
      expect(used).not.toHaveBeenCalled();
      const fitted = await fit_logistic_regression(rows, classes, NUM_CLASSES, { ...given, engine });
      expect(used.mock.calls.length).toBeGreaterThan(5);
      expect([alone.converged, fitted.converged]).toEqual([true, true]);
      expect(Math.abs(fitted.loss - alone.loss)).toBeLessThan(1e-10);
      expect(max_difference(fitted.weights, alone.weights)).toBeLessThan(1e-5);
      expect(max_difference(fitted.bias, alone.bias)).toBeLessThan(1e-5);
      expect(model.memory()).toMatchObject({ handles, bytes });
      await model.dispose();
    },
  );

  test("an abort frees what it holds", async () => {
    const { rows, classes } = large_problem();
    const model = await ViTMSNModel.from_config({
      hidden_size: 16,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    });
    const { handles } = model.memory();
    const pacer = new Pacer(abort_at_look(6).signal, "Test");
    const given = { ...options(0.01, false), pacer, engine: model.engine as TrainingEngine };
    await expect(fit_logistic_regression(rows, classes, NUM_CLASSES, given)).rejects.toMatchObject({
      code: "ABORTED",
    });
    expect(model.memory().handles).toBe(handles);
    await model.dispose();
  });

  test("the inverse of a factorised matrix is its inverse", () => {
    for (const size of [1, 3, 4, 9]) {
      const x = Float64Array.from({ length: (size + 3 - ((size + 3) % 4) + 4) * size }, (_, i) =>
        noise(i, 3),
      );
      const matrix = gram(x, size);
      const inverse = inverse_of(cholesky(matrix, size), size);
      for (let i = 0; i < size; i++)
        for (let j = 0; j < size; j++) {
          let sum = 0;
          for (let k = 0; k < size; k++)
            sum += (matrix[i * size + k] as number) * (inverse[k * size + j] as number);
          expect(sum).toBeCloseTo(i === j ? 1 : 0, 8);
        }
    }
  });
});

describe("cross-validation", () => {
  test("judges every penalty on every image, in as many folds as the smallest class allows", async () => {
    const { rows, classes } = await first_of_each(4, 3);
    const labels = ["a", "b", "c"];
    const progress: number[] = [];
    const scores = await cross_validate(
      make_design(rows),
      classes,
      labels,
      plan_fit({ penalty: "auto", penalties: [1, 0.01, 0.1], folds: 10 }) as LogisticPlan,
      {
        pacer: new Pacer(undefined, "Test"),
        progress_callback: ({ done, total }) => progress.push(done / total),
      },
    );
    expect(scores.map(({ penalty }) => penalty)).toEqual([0.01, 0.1, 1]);
    expect(progress).toEqual(Array.from({ length: 12 }, (_, i) => (i + 1) / 12));
    for (const { accuracy, loss } of scores) {
      expect(accuracy * 12).toBeCloseTo(Math.round(accuracy * 12), 9);
      expect(loss).toBeGreaterThan(0);
    }
  });
});

describe("linear algebra", () => {
  const matrix = (rows: number, columns: number, seed: number) =>
    Float64Array.from({ length: rows * columns }, (_, i) => noise(i, seed));

  test.each([
    [4, 2, 1],
    [8, 2, 7],
    [12, 6, 13],
  ])("products of %i rows, %i classes, %i columns", (rows, classes, columns) => {
    const [x, w] = [matrix(rows, columns, 1), matrix(classes, columns, 2)];
    const product = new Float64Array(rows * classes);
    times_transposed(x, w, columns, product);
    const back = new Float64Array(classes * columns);
    transposed_times(product, x, columns, back);
    const at = (m: Float64Array, i: number, j: number, width: number) => m[i * width + j] as number;
    for (let i = 0; i < rows; i++) {
      for (let c = 0; c < classes; c++) {
        let sum = 0;
        for (let k = 0; k < columns; k++) sum += at(x, i, k, columns) * at(w, c, k, columns);
        expect(at(product, i, c, classes)).toBeCloseTo(sum, 12);
      }
    }
    for (let c = 0; c < classes; c++) {
      for (let k = 0; k < columns; k++) {
        let sum = 0;
        for (let i = 0; i < rows; i++) sum += at(product, i, c, classes) * at(x, i, k, columns);
        expect(at(back, c, k, columns)).toBeCloseTo(sum, 11);
      }
    }
  });

  test("Cholesky's factor solves what the Gram matrix multiplies", () => {
    const [columns, x] = [7, matrix(12, 7, 3)];
    const square = gram(x, columns);
    const wanted = matrix(2, columns, 5);
    const right = new Float64Array(2 * columns);
    for (let r = 0; r < 2; r++) {
      for (let i = 0; i < columns; i++) {
        for (let j = 0; j < columns; j++)
          right[r * columns + i] =
            (right[r * columns + i] as number) +
            (square[i * columns + j] as number) * (wanted[r * columns + j] as number);
      }
    }
    cholesky_solve(cholesky(square, columns), columns, right);
    expect(max_difference(right, wanted)).toBeLessThan(1e-9);
  });

  test("a basis excludes rows that depend on others", () => {
    const x = Float64Array.of(1, 2, 3, 2, 4, 6, 0, 0, 0, 1, 0, 1);
    const basis = orthonormal_basis(x, 3);
    expect(basis.length).toBe(6);
    const [u, v] = [basis.subarray(0, 3), basis.subarray(3)];
    expect([dot(u, u), dot(v, v)]).toEqual([expect.closeTo(1, 14), expect.closeTo(1, 14)]);
    expect(dot(u, v)).toBeCloseTo(0, 14);
  });
});
