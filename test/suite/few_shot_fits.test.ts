import { MSN_PENALTIES } from "vit-msn";
import { afterEach, describe, expect, test, vi } from "vitest";
import { Pacer } from "../../ts/engine/pacer.ts";
import { leave_one_out } from "../../ts/learning/evaluation.ts";
import type { Example } from "../../ts/learning/features.ts";
import { fit_head } from "../../ts/learning/fit.ts";
import {
  default_penalty,
  type FitOptions,
  type LogisticPlan,
  plan_fit,
} from "../../ts/learning/fit_options.ts";
import { argmax, indices_of_largest, NeighborHead } from "../../ts/learning/heads.ts";
import { fit_logistic_regression, type Rows } from "../../ts/learning/logistic_regression.ts";
import { abort_at_look } from "../support/signals.ts";

const SIZE = 6;
const PENALTIES = [0.0001, 0.01, 1, 100];

/** A number between -1 and 1 that depends on `i` alone. */
const noise = (i: number) => (((i * 2654435761) >>> 0) / 2 ** 31 - 1) as number;

/** `counts` examples of each label, label after label: noise with a little of the label's own direction. */
function examples_of(counts: Readonly<Record<string, number>>, signal = 0.7): Example[] {
  let i = 0;
  return Object.entries(counts).flatMap(([label, count], axis) =>
    Array.from({ length: count }, () => {
      const feature = Float32Array.from({ length: SIZE }, (_, k) => noise(++i) + (k === axis ? signal : 0));
      return { id: i, label, feature } as Example;
    }),
  );
}

const fit_examples = (examples: Example[], options: FitOptions) => fit_head(examples, plan_fit(options), {});

describe('penalty: "auto"', () => {
  test("is the one with the smallest loss on held-out images", async () => {
    for (const signal of [0.2, 0.7, 3]) {
      const examples = examples_of({ a: 12, b: 9, c: 10 }, signal);
      const { report } = await fit_examples(examples, { penalty: "auto", penalties: PENALTIES });
      const scores = report.cross_validation ?? [];
      const losses = scores.map(({ loss }) => loss);
      expect(new Set(losses).size).toBe(PENALTIES.length);
      const best = losses.indexOf(Math.min(...losses));
      expect(report.penalty).toBe(scores[best]?.penalty);
    }
  });

  test("is the stronger one of two that are equally good", async () => {
    const examples = examples_of({ a: 4, b: 4 }).map((example) => ({
      ...example,
      feature: new Float32Array(SIZE),
    }));
    const { report } = await fit_examples(examples, { penalty: "auto", penalties: [0.5, 2, 1] });
    expect(report.cross_validation?.map(({ loss }) => loss)).toEqual(Array(3).fill(Math.log(2)));
    expect(report.penalty).toBe(2);
  });

  test("every fold holds out the same share of each label, whatever the order", async () => {
    // All of "a" were added before all of "b".
    const examples = examples_of({ a: 8, b: 4 });
    const folds = 4;
    const { report } = await fit_examples(examples, { penalty: "auto", penalties: [0.05, 0.5, 5], folds });
    for (const { penalty, accuracy, loss } of report.cross_validation ?? []) {
      const expected = await held_out_results(examples, penalty, folds);
      expect(loss).toBeCloseTo(expected.loss, 1);
      expect(accuracy).toBeCloseTo(expected.accuracy, 9);
    }
  });
});

/** Cross-validation by its definition: fold i mod k holds out the i-th image of each label. */
async function held_out_results(examples: Example[], penalty: number, folds: number) {
  const labels = [...new Set(examples.map(({ label }) => label))];
  const fold_of = examples.map(
    ({ label }, i) => examples.slice(0, i).filter((other) => other.label === label).length % folds,
  );
  let loss = 0;
  let right = 0;
  for (let fold = 0; fold < folds; fold++) {
    const rest = examples.filter((_, i) => fold_of[i] !== fold);
    const plan = plan_fit({ penalty }) as LogisticPlan;
    const { weights } = await fit_logistic_regression(
      rows_of(rest),
      Int32Array.from(rest, ({ label }) => labels.indexOf(label)),
      labels.length,
      { ...plan, penalty, pacer: new Pacer(undefined, "Test") },
    );
    for (const { feature, label } of examples.filter((_, i) => fold_of[i] === fold)) {
      const logits = labels.map((_, c) => dot(weights.subarray(c * SIZE, (c + 1) * SIZE), feature));
      const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
      const truth = logits[labels.indexOf(label)] as number;
      loss -= truth - Math.log(sum);
      if (truth === Math.max(...logits)) right++;
    }
  }
  return { loss: loss / examples.length, accuracy: right / examples.length };
}

function rows_of(examples: Example[]): Rows {
  const values = Float64Array.from(examples.flatMap(({ feature }) => [...feature]));
  return { values, count: examples.length, size: SIZE };
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a, (x, i) => x * (b[i] as number)).reduce((sum, x) => sum + x, 0);

test("the default penalty is cross-validated where every label has two images, else the paper's", () => {
  const labels = ["a", "b"];
  expect(default_penalty(labels, Int32Array.of(0, 1, 1, 1, 1))).toBe(MSN_PENALTIES.few);
  expect(default_penalty(labels, Int32Array.of(0, 0, 1, 1))).toBe("auto");
});

describe("nearest centroid", () => {
  const examples = examples_of({ a: 3, b: 5 });

  function expected_scores(feature: Float32Array, temperature: number): number[] {
    const exps = ["a", "b"].map((label) => {
      const own = examples.filter((example) => example.label === label);
      const square = Array.from(feature, (x, k) => {
        const mean = own.reduce((sum, example) => sum + (example.feature[k] as number), 0) / own.length;
        return (x - mean) ** 2;
      }).reduce((sum, x) => sum + x, 0);
      return Math.exp(-square / (2 * temperature));
    });
    const total = exps.reduce((sum, x) => sum + x, 0);
    return exps.map((x) => x / total);
  }

  test("has a tenth of the features' mean square length as its default temperature", async () => {
    const square = examples.reduce((sum, { feature }) => sum + dot(feature, feature), 0) / examples.length;
    const { head } = await fit_examples(examples, { method: "nearest_centroid" });
    for (const { feature } of examples) {
      const expected = expected_scores(feature, 0.1 * square);
      for (const [c, score] of head.scores(feature).entries())
        expect(score).toBeCloseTo(expected[c] as number, 4);
    }
  });

  test("takes another temperature", async () => {
    const { head } = await fit_examples(examples, { method: "nearest_centroid", temperature: 2.5 });
    const [first] = examples as [Example];
    const expected = expected_scores(first.feature, 2.5);
    expect(head.scores(first.feature)[0]).toBeCloseTo(expected[0] as number, 5);
  });

  test("can't tell labels apart whose features are all zero", async () => {
    const zeros = examples.map((example) => ({ ...example, feature: new Float32Array(SIZE) }));
    const { head } = await fit_examples(zeros, { method: "nearest_centroid" });
    expect([...head.scores(new Float32Array(SIZE))]).toEqual([0.5, 0.5]);
  });
});

test("the first of equal scores is the best", () => {
  expect(argmax([1, 3, 2, 3])).toBe(1);
  expect(argmax([0, 0])).toBe(0);
  expect(argmax([-2, -1])).toBe(1);
});

describe("k-NN", () => {
  const at = (label: string, ...feature: number[]) =>
    ({ id: 0, label, feature: Float32Array.from(feature) }) as Example;
  const examples = [at("a", 1, 0), at("a", 3, 4), at("b", 0, 2), at("b", -1, 0)];
  const query = Float32Array.of(2, 0);
  // The cosines are 1, 0.6, 0 and -1.

  test("weighs its neighbours by exp(cosine / temperature)", async () => {
    const { head } = await fit_examples(examples, { method: "knn", k: 3, temperature: 0.5 });
    const votes = [Math.exp(1 / 0.5) + Math.exp(0.6 / 0.5), Math.exp(0)] as const;
    const [a, b] = head.scores(query) as unknown as [number, number];
    expect(a).toBeCloseTo(votes[0] / (votes[0] + votes[1]), 6);
    expect(b).toBeCloseTo(votes[1] / (votes[0] + votes[1]), 6);
  });

  test("has DINO's temperature by default, and equal votes if asked", async () => {
    const soft = await fit_examples(examples, { method: "knn", k: 3 });
    const votes = [1 + Math.exp((0.6 - 1) / 0.07), Math.exp(-1 / 0.07)] as const;
    expect(soft.head.scores(query)[1]).toBeCloseTo(votes[1] / (votes[0] + votes[1]), 9);
    const uniform = await fit_examples(examples, { method: "knn", k: 3, weights: "uniform" });
    expect([...uniform.head.scores(query)]).toEqual([2 / 3, 1 / 3]);
  });
});

describe("k-NN", () => {
  afterEach(() => {
    vi.restoreAllMocks();
  });

  test("a fit classifies a bounded number of examples, however many there are", async () => {
    const scores = vi.spyOn(NeighborHead.prototype, "scores");
    const { report } = await fit_examples(examples_of({ a: 40, b: 30 }, 5), { method: "knn" });
    expect([scores.mock.calls.length, report.train_accuracy]).toEqual([70, 1]);
    scores.mockClear();
    const many = await fit_examples(examples_of({ a: 3000, b: 500 }, 5), { method: "knn" });
    expect([scores.mock.calls.length, many.report.images]).toEqual([500, 3500]);
  });

  test("a fit is aborted between examples", async () => {
    const { signal } = abort_at_look(20);
    const scores = vi.spyOn(NeighborHead.prototype, "scores");
    const plan = plan_fit({ method: "knn" });
    const fit = fit_head(examples_of({ a: 300, b: 300 }), plan, { signal });
    await expect(fit).rejects.toMatchObject({ code: "ABORTED" });
    expect(scores.mock.calls.length).toBeLessThan(30);
  });

  test("leave-one-out fits once, and gives what fits to all others give", async () => {
    const examples = examples_of({ a: 5, b: 7, c: 1 });
    for (const k of [1, 3, 12, 20]) {
      const options = { method: "knn", k, weights: "uniform" } as const;
      const evaluation = await leave_one_out(examples, plan_fit(options), {});
      let correct = 0;
      for (const [i, { feature, label }] of examples.entries()) {
        const { head } = await fit_examples(
          examples.filter((_, other) => other !== i),
          options,
        );
        if (head.labels[argmax(head.scores(feature))] === label) correct++;
      }
      expect([k, evaluation.correct]).toEqual([k, correct]);
    }
  });

  test("neighbours are the largest values in their order; among equals, the first", () => {
    for (const length of [1, 7, 200]) {
      const values = Float64Array.from({ length }, (_, i) => Math.round(4 * noise(i)));
      const sorted = [...values.keys()].sort((a, b) => (values[b] as number) - (values[a] as number));
      for (const count of [0, 1, 2, 64, 65, length])
        expect(indices_of_largest(values, Math.min(count, length))).toEqual(
          sorted.slice(0, Math.min(count, length)),
        );
    }
  });
});
