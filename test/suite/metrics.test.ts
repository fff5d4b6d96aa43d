import { Tensor, ViTMSNForImageClassification } from "vit-msn";
import {
  class_metrics,
  classification_metrics,
  multi_label_metrics,
  regression_metrics,
  Trainer,
} from "vit-msn/training";
import { beforeAll, expect, test } from "vitest";
import { read_file } from "../support/files.ts";

const matrix = (rows: number[][]) => new Tensor("float32", rows.flat(), [rows.length, rows[0]?.length ?? 0]);

let recorded: {
  single: { logits: number[][]; labels: number[]; accuracy: number; classes: number[][]; macro: number[] };
  multi: { scores: number[][]; labels: number[][] } & Record<string, number>;
  regression: { predictions: number[][]; labels: number[][]; mae: number; r2: number };
};
beforeAll(async () => {
  recorded = JSON.parse(new TextDecoder().decode(await read_file("test/fixtures/metrics.json")));
});

test("one class for each image: scikit-learn's values, for each class and on average", () => {
  const { logits, labels, accuracy, classes, macro } = recorded.single;
  const prediction = { predictions: matrix(logits), label_ids: new Tensor("int32", labels, [labels.length]) };
  const found = class_metrics(prediction).map(({ precision, recall, f1, support }) => [
    precision,
    recall,
    f1,
    support,
  ]);
  for (const [i, row] of found.entries())
    for (const [j, value] of row.entries()) expect(value).toBeCloseTo(classes[i]?.[j] as number, 12);
  const { precision, recall, f1, ...rest } = classification_metrics(prediction);
  for (const [i, value] of [precision, recall, f1].entries())
    expect(value).toBeCloseTo(macro[i] as number, 12);
  expect(rest).toEqual({ accuracy });
});

test("labels of -100 don't count", () => {
  const predictions = matrix([
    [1, 0],
    [0, 1],
    [1, 0],
  ]);
  const metrics = classification_metrics({ predictions, label_ids: new Tensor("int32", [0, -100, 0], [3]) });
  expect(metrics).toEqual({ accuracy: 1, precision: 1, recall: 1, f1: 1 });
});

test("several classes for each image: scikit-learn's values, with ties and a class without images", () => {
  const { scores, labels, ...expected } = recorded.multi;
  const metrics = multi_label_metrics({ predictions: matrix(scores), label_ids: matrix(labels) });
  expect(Object.keys(metrics).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, value] of Object.entries(expected)) expect(metrics[name], name).toBeCloseTo(value, 12);
});

test("regression: scikit-learn's values; a constant target has no variance to explain", () => {
  const { predictions, labels, mae, r2 } = recorded.regression;
  const metrics = regression_metrics({ predictions: matrix(predictions), label_ids: matrix(labels) });
  expect(metrics.mae).toBeCloseTo(mae, 6);
  expect(metrics.r2).toBeCloseTo(r2, 6);
  const constant = (value: number) => ({
    predictions: matrix([[value], [2]]),
    label_ids: matrix([[2], [2]]),
  });
  expect([regression_metrics(constant(2)).r2, regression_metrics(constant(3)).r2]).toEqual([1, 0]);
});

test.each([
  ["multi_label_classification", 3, ["eval_f1_macro", "eval_f1_micro", "eval_mean_average_precision"]],
  ["regression", 1, ["eval_mae", "eval_r2"]],
  ["regression", 2, ["eval_mae", "eval_r2"]],
] as const)("evaluate reports them for %s with %d outputs", async (problem_type, num_labels, names) => {
  const model = await ViTMSNForImageClassification.from_config({
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    intermediate_size: 8,
    image_size: 8,
    patch_size: 4,
    num_labels,
    problem_type,
  });
  const eval_dataset = Array.from({ length: 4 }, (_, i) => ({
    pixel_values: new Tensor("float32", new Float32Array(192).fill(i), [3, 8, 8]),
    label: num_labels === 1 ? i / 2 : Array.from({ length: num_labels }, (_, c) => (i + c) % 2),
  }));
  const metrics = await new Trainer({ model, eval_dataset }).evaluate();
  const found = Object.keys(metrics).filter((name) => !/loss|runtime|per_second|epoch/.test(name));
  expect(found.sort()).toEqual([...names]);
  await model.dispose();
});
