import { env, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { type Example, ImageFolder, Trainer, type TrainingOptions } from "vit-msn/training";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DataLoader } from "../../ts/training/data/data_loader.ts";
import { TRAINABLE_CONFIG } from "../support/models.ts";

const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_hidden_layers: 1,
  num_labels: 2,
};

const warn = env.warn;
beforeAll(() => {
  env.warn = () => {};
});
afterAll(() => {
  env.warn = warn;
});

const counts = ({ examples }: { examples: readonly Example[] }) => {
  const counted: Record<string, number> = {};
  for (const { label } of examples) counted[String(label)] = (counted[String(label)] ?? 0) + 1;
  return counted;
};

describe("a stratified split", () => {
  const folder = new ImageFolder(
    ["a", "b", "c"],
    ["a", "b", "c"].flatMap((label, i) =>
      Array.from({ length: [50, 30, 13][i] as number }, (_, k) => ({ image: `${label}${k}`, label })),
    ),
  );

  test("takes scikit-learn's number of each class, and every image once", () => {
    const [first, second] = folder.split(0.25, 7, { stratified: true });
    // StratifiedShuffleSplit(test_size=0.25) of these classes.
    expect(counts(second)).toEqual({ a: 13, b: 8, c: 3 });
    expect(counts(first)).toEqual({ a: 37, b: 22, c: 10 });
    const all = [...first.examples, ...second.examples].map(({ image }) => image);
    expect(new Set(all).size).toBe(93);
    expect(folder.split(0.25, 7, { stratified: true })).toEqual([first, second]);
    expect(folder.split(0.25, 8, { stratified: true })[1].examples).not.toEqual(second.examples);
  });

  test("is refused by name if misspelt", () => {
    expect(() => folder.split(0.25, 7, { stratify: true } as never)).toThrow(
      /no option "stratify".*stratified/,
    );
  });
});

/** The labels that the epochs of a loader give. */
async function drawn(labels: readonly number[], epoch: number, skip = 0) {
  const data = labels.map((label) => ({ label }));
  const loader = new DataLoader(data, "train_dataset", {
    batch_size: 10,
    is_training: true,
    is_balanced: true,
    seed: 3,
    collate: async (batch) => batch.map(({ index, random }) => ({ index, drawn: random.uniform() })),
  });
  const found: { index: number; drawn: number }[] = [];
  for await (const batch of loader.epoch(epoch, skip)) found.push(...(batch ?? []));
  return found;
}

describe("class-balanced sampling", () => {
  const labels = Array.from({ length: 1000 }, (_, i) => (i < 900 ? 0 : 1));

  test("draws classes equally often, each draw with its own random numbers", async () => {
    const found = await drawn(labels, 0);
    expect(found).toHaveLength(1000);
    const rare = found.filter(({ index }) => labels[index] === 1);
    expect(Math.abs(rare.length / 1000 - 0.5)).toBeLessThan(4 * Math.sqrt(0.25 / 1000));
    expect(new Set(rare.map(({ index }) => index)).size).toBeGreaterThan(90);
    expect(new Set(found.map(({ drawn }) => drawn)).size).toBe(1000);
    expect((await drawn(labels, 1)).map(({ index }) => index)).not.toEqual(found.map(({ index }) => index));
  });

  test("resumes within an epoch", async () => {
    expect(await drawn(labels, 2, 40)).toEqual((await drawn(labels, 2)).slice(400));
  });

  test("needs a class for each image, and a length", async () => {
    const model = await ViTMSNForImageClassification.from_config(CONFIG);
    const image = { pixel_values: new Tensor("float32", new Float32Array(192), [3, 8, 8]) };
    const args: TrainingOptions = { train_sampling_strategy: "class_balanced", max_steps: 1 };
    const train = (train_dataset: ConstructorParameters<typeof Trainer>[0]["train_dataset"]) =>
      new Trainer({ model, train_dataset, args }).train();
    await expect(train([{ ...image, label: [0, 1] }])).rejects.toThrow(
      /needs one class for each image; example 0 has several numbers/,
    );
    await expect(
      train(async function* () {
        yield { ...image, label: 0 };
      }),
    ).rejects.toThrow(/needs data with a length; train_dataset is a stream/);
    await model.dispose();
  });
});

test("test_time_augmentation averages the logits of an image and its mirror image", async () => {
  const model = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3 });
  const images = Array.from({ length: 5 }, (_, i) => {
    const values = Float32Array.from({ length: 192 }, (_, p) => Math.sin(p * 1.3 + i * i));
    return { pixel_values: new Tensor("float32", values, [3, 8, 8]), label: i % 2 };
  });
  const flipped = images.map(({ pixel_values, label }) => {
    const data = pixel_values.data.map((_, p) => pixel_values.data[p - (p % 8) + 7 - (p % 8)] as number);
    return { pixel_values: new Tensor("float32", data, [3, 8, 8]), label };
  });
  const predict = (dataset: Example[], test_time_augmentation: "none" | "flip") =>
    new Trainer({ model, args: { test_time_augmentation, per_device_eval_batch_size: 2 } }).predict(dataset);
  const [plain, mirror] = [await predict(images, "none"), await predict(flipped, "none")];
  const { predictions, metrics } = await predict(images, "flip");
  const wanted = plain.predictions.data.map(
    (x, i) => Math.fround(x + (mirror.predictions.data[i] as number)) / 2,
  );
  expect(predictions.data).toEqual(wanted);
  expect((await predict(flipped, "flip")).predictions.data).toEqual(wanted);
  let loss = 0;
  for (const [i, { label }] of images.entries()) {
    const [a, b] = [wanted[2 * i] as number, wanted[2 * i + 1] as number];
    loss += Math.log(Math.exp(a) + Math.exp(b)) - (label === 0 ? a : b);
  }
  expect(metrics.test_loss).toBeCloseTo(loss / 5, 6);
  await model.dispose();
});
