import { Tensor, ViTMSNConfig, ViTMSNForImageClassification } from "vit-msn";
import {
  type ComputeLoss,
  cross_entropy_loss,
  type DataCollator,
  distillation_loss,
  type Example,
  erasing_collator,
  mixing_collator,
  Random,
  Trainer,
  type TrainingOptions,
} from "vit-msn/training";
import { beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { TRAINABLE_CONFIG } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference } from "../support/tensors.ts";

const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_labels: 4,
  problem_type: "single_label_classification",
} as const;

interface Recorded {
  logits: number[][];
  teacher: number[][];
  labels: number[];
  soft: number[][];
  weights: number[];
  temperature: number;
  lambda_param: number;
  cases: Record<string, { loss: number; gradient: number[][] }>;
}
let recorded: Recorded;
let logits: Tensor<"float32">;
let labels: Tensor;
let soft: Tensor;
beforeAll(async () => {
  recorded = JSON.parse(new TextDecoder().decode(await read_file("test/fixtures/losses.json")));
  logits = matrix(recorded.logits);
  labels = new Tensor("int32", recorded.labels, [6]);
  soft = matrix(recorded.soft);
});

const matrix = (rows: number[][]) => new Tensor("float32", rows.flat(), [rows.length, rows[0]?.length ?? 0]);

function examples(count: number, label: (i: number) => number): (Example & { label: number })[] {
  return Array.from({ length: count }, (_, i) => {
    const values = Float32Array.from({ length: 192 }, (_, p) => Math.sin(p * (label(i) + 1) + i));
    return { pixel_values: new Tensor("float32", values, [3, 8, 8]), label: label(i) };
  });
}

const new_model = (config = {}) =>
  ViTMSNForImageClassification.from_config({ ...CONFIG, ...config }, { seed: 3 });

describe("losses and gradients are PyTorch's", () => {
  test.each(["weighted", "weighted_smoothed", "soft", "soft_weighted_smoothed", "distillation"])(
    "%s",
    async (name) => {
      const { weights: class_weights, cases, temperature, lambda_param, teacher } = recorded;
      const compute: Record<string, () => ReturnType<ComputeLoss>> = {
        weighted: () => cross_entropy_loss(logits, labels, { class_weights }),
        weighted_smoothed: () => cross_entropy_loss(logits, labels, { class_weights, label_smoothing: 0.2 }),
        soft: () => cross_entropy_loss(logits, soft),
        soft_weighted_smoothed: () =>
          cross_entropy_loss(logits, soft, { class_weights, label_smoothing: 0.1 }),
        distillation: () =>
          distillation_loss({
            teacher: { forward: async () => ({ logits: matrix(teacher) }) } as never,
            temperature,
            lambda_param,
          })({ logits, labels, batch: { pixel_values: logits }, signal: undefined }),
      };
      const { loss, gradient } = await (compute[name] as () => ReturnType<ComputeLoss>)();
      const expected = cases[name] as { loss: number; gradient: number[][] };
      expect(loss).toBeCloseTo(expected.loss, 5);
      expect(max_difference(gradient.data, expected.gradient.flat())).toBeLessThan(1e-6);
    },
  );
});

describe("in the Trainer", () => {
  const run = async (
    args: TrainingOptions,
    options: { compute_loss?: ComputeLoss; data_collator?: DataCollator } = {},
    config = {},
  ) => {
    const model = await new_model(config);
    const data = examples(12, (i) => (i * i) % 4);
    const trainer = new Trainer({
      model,
      train_dataset: data,
      eval_dataset: data,
      args: { learning_rate: 0.01, logging_steps: 1, per_device_train_batch_size: 4, max_steps: 4, ...args },
      ...options,
    });
    await trainer.train();
    const { eval_loss } = await trainer.evaluate();
    await model.dispose();
    return [...trainer.state.log_history.flatMap(({ loss }) => loss ?? []), eval_loss as number];
  };
  const close = (a: number[], b: number[]) => expect(max_difference(a, b)).toBeLessThan(1e-5);

  test("weights of one are no weights, and accumulated batches are one batch", async () => {
    const plain = await run({ label_smoothing_factor: 0.1 });
    close(await run({ label_smoothing_factor: 0.1, class_weights: [1, 1, 1, 1] }), plain);
    const class_weights = [0.2, 3, 1, 2];
    const whole = await run({ class_weights });
    expect(whole).not.toEqual(plain);
    close(
      await run({ class_weights, per_device_train_batch_size: 1, gradient_accumulation_steps: 4 }),
      whole,
    );
  });

  test("soft labels that are certain are class indices", async () => {
    const one_hot: DataCollator = async (drawn) => ({
      pixel_values: new Tensor(
        "float32",
        drawn.flatMap(({ example }) => [...(example.pixel_values as Tensor<"float32">).data]),
        [drawn.length, 3, 8, 8],
      ),
      labels: matrix(drawn.map(({ example }) => [0, 1, 2, 3].map((c) => Number(c === example.label)))),
    });
    close(await run({}, { data_collator: one_hot }), await run({}));
  });

  test("compute_loss replaces the loss in training and evaluation", async () => {
    const compute_loss: ComputeLoss = ({ logits, labels }) => {
      const { loss, gradient } = cross_entropy_loss(logits, labels as Tensor);
      return {
        loss: 2 * loss,
        gradient: new Tensor(
          "float32",
          gradient.data.map((x) => 2 * x),
          gradient.dims,
        ),
      };
    };
    const doubled = await run({ optim: "sgd", learning_rate: 0.01, max_grad_norm: 0 }, { compute_loss });
    const plain = await run({ optim: "sgd", learning_rate: 0.02, max_grad_norm: 0 });
    close(
      doubled.map((loss) => loss / 2),
      plain,
    );
    const error = await error_of(run({}, { compute_loss: (() => 5) as never }));
    expect([error.code, error.message]).toEqual([
      "INVALID_ARGUMENT",
      expect.stringMatching(/compute_loss must return \{ loss, gradient \}.*\[4, 4\]/),
    ]);
  });

  test("a student learns from a teacher, without labels", async () => {
    const [teacher, student] = [await new_model(), await new_model({ hidden_size: 8, num_hidden_layers: 1 })];
    const train_dataset = examples(8, (i) => i % 4).map(({ pixel_values }) => ({ pixel_values }));
    const trainer = new Trainer({
      model: student,
      train_dataset,
      compute_loss: distillation_loss({ teacher, lambda_param: 1 }),
      args: { learning_rate: 0.01, logging_steps: 1, max_steps: 20 },
    });
    await trainer.train();
    const losses = trainer.state.log_history.flatMap(({ loss }) => loss ?? []);
    expect(losses.at(-1)).toBeLessThan(0.5 * (losses[0] as number));
    await Promise.all([teacher.dispose(), student.dispose()]);
  });

  test("wrong class weights are named", async () => {
    const few = await error_of(run({ class_weights: [1, 2] }));
    expect(few.message).toMatch(/class_weights must hold 4 numbers, one for each class, got 2/);
    await expect(run({ class_weights: [1, -2, 1, 1] })).rejects.toThrow(
      /class_weights must be a list of numbers/,
    );
  });

  test("an option erases parts of training images", async () => {
    const [plain, erased] = [
      await run({ max_steps: 1 }),
      await run({ max_steps: 1, random_erasing_prob: 1 }),
    ];
    expect(erased[0]).not.toBe(plain[0]);
  });

  test("Mixup and CutMix train, and evaluation is unmixed", async () => {
    const plain = await run({ max_steps: 1 });
    const mixed = await run({ max_steps: 1, mixup_alpha: 0.8, cutmix_alpha: 1 });
    expect(mixed[0]).not.toBe(plain[0]);
    expect(await run({ max_steps: 1, mixup_alpha: 0.8, mixup_prob: 0 })).toEqual(
      await run({ max_steps: 1, cutmix_alpha: 1, mixup_prob: 0 }),
    );
    close(await run({ max_steps: 1, mixup_alpha: 0.8, mixup_prob: 0 }), plain);
  });
});

describe("mixing", () => {
  const batch = {
    pixel_values: new Tensor(
      "float32",
      Float32Array.from({ length: 4 * 64 }, (_, i) => Math.floor(i / 64)),
      [4, 1, 8, 8],
    ),
    labels: new Tensor("int32", [0, 1, 2, 3], [4]),
  };
  const mix = async (options: object, seed: number, is_training = true) => {
    const collate = mixing_collator(async () => batch, new ViTMSNConfig(CONFIG), options);
    const mixed = await collate([], { is_training, random: new Random(seed) });
    return mixed as { pixel_values: Tensor<"float32">; labels: Tensor<"float32"> };
  };

  test("Mixup blends images and labels by the same share", async () => {
    const { pixel_values, labels } = await mix({ mixup_alpha: 1 }, 5);
    const share = labels.data[0] as number;
    expect(labels.dims).toEqual([4, 4]);
    expect([...labels.data.slice(0, 4)]).toEqual([share, 0, 0, Math.fround(1 - share)]);
    expect(pixel_values.data[0]).toBeCloseTo(3 * (1 - share), 6);
  });

  test("CutMix's labels are the areas", async () => {
    for (const seed of [1, 2, 3, 4, 5]) {
      const { pixel_values, labels } = await mix({ cutmix_alpha: 1 }, seed);
      const own = pixel_values.data.slice(0, 64).filter((x) => x === 0).length;
      expect(labels.data[0]).toBeCloseTo(own / 64, 6);
      expect(pixel_values.data.slice(0, 64).every((x) => x === 0 || x === 3)).toBe(true);
    }
  });

  test("evaluation isn't mixed", async () => {
    expect(await mix({ mixup_alpha: 1 }, 5, false)).toBe(batch);
  });

  test("shares have the mean and variance of Beta(α, α)", async () => {
    const shares: number[] = [];
    for (let seed = 0; seed < 400; seed++)
      shares.push((await mix({ mixup_alpha: 0.4 }, seed)).labels.data[0] as number);
    const mean = shares.reduce((a, b) => a + b, 0) / 400;
    const variance = shares.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 400;
    expect(Math.abs(mean - 0.5)).toBeLessThan(0.06);
    expect(Math.abs(variance - 1 / (4 * (2 * 0.4 + 1)))).toBeLessThan(0.02);
  });
});

describe("random erasing", () => {
  const batch = { pixel_values: new Tensor("float32", new Float32Array(64 * 3 * 16 * 16), [64, 3, 16, 16]) };
  const erase = async (random_erasing_prob: number, is_training = true) => {
    const collate = erasing_collator(async () => batch, { random_erasing_prob });
    return (await collate([], { is_training, random: new Random(7) })) as typeof batch;
  };
  /** The places of an image's channel that changed. */
  const changed = (data: Float32Array, row: number, channel: number) => {
    const start = (3 * row + channel) * 256;
    return Array.from({ length: 256 }, (_, i) => i).filter((i) => data[start + i] !== 0);
  };

  test("a box of the wanted area becomes normal noise, the same box in each channel", async () => {
    const { data } = (await erase(1)).pixel_values;
    for (let row = 0; row < 64; row++) {
      const places = changed(data, row, 0);
      expect(changed(data, row, 2)).toEqual(places);
      const [ys, xs] = [places.map((i) => Math.floor(i / 16)), places.map((i) => i % 16)];
      const side = (values: number[]) => Math.max(...values) - Math.min(...values) + 1;
      expect(places).toHaveLength(side(ys) * side(xs));
      expect(places.length).toBeGreaterThan(0.01 * 256);
      expect(places.length).toBeLessThan(0.45 * 256);
    }
    const noise = data.filter((x) => x !== 0);
    const mean = noise.reduce((a, b) => a + b, 0) / noise.length;
    expect(Math.abs(mean)).toBeLessThan(0.05);
    expect(Math.abs(noise.reduce((sum, x) => sum + x * x, 0) / noise.length - 1)).toBeLessThan(0.1);
  });

  test("happens with its probability, in training alone", async () => {
    const { data } = (await erase(0.5)).pixel_values;
    const erased = Array.from({ length: 64 }, (_, row) => changed(data, row, 0).length > 0).filter(Boolean);
    expect(Math.abs(erased.length - 32)).toBeLessThan(14);
    expect(await erase(1, false)).toBe(batch);
  });
});
