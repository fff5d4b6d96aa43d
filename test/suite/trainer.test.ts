import { env, RawImage, Tensor, ViTImageProcessor, ViTMSNForImageClassification, VitMsnError } from "vit-msn";
import {
  compute_gradients,
  EarlyStoppingCallback,
  type Example,
  learning_rate_factor,
  Trainer,
  TrainingArguments,
  type TrainingOptions,
} from "vit-msn/training";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type TemporaryDirectory, temporary_directory } from "../support/directories.ts";
import { saved_weights, TRAINABLE_CONFIG } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference, parse_tensors } from "../support/tensors.ts";

const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_labels: 3,
};
const PIXELS = 3 * 8 * 8;

const warn = env.warn;
beforeEach(() => {
  env.warn = vi.fn();
});
afterEach(() => {
  env.warn = warn;
});

/** Images of three kinds that a small model can tell apart. */
function images(count: number): (Example & { pixel_values: Tensor<"float32">; label: number })[] {
  return Array.from({ length: count }, (_, i) => {
    const label = i % 3;
    const values = Float32Array.from(
      { length: PIXELS },
      (_, p) => Math.sin(p * (label + 1) + i) + 0.5 * label,
    );
    return { pixel_values: new Tensor("float32", values, [3, 8, 8]), label };
  });
}

type ModelOptions = Parameters<typeof ViTMSNForImageClassification.from_config>[1];

function new_model(config: Record<string, unknown> = {}, options: ModelOptions = {}) {
  return ViTMSNForImageClassification.from_config({ ...CONFIG, ...config }, { seed: 3, ...options });
}

const losses = ({ state }: Trainer) => state.log_history.flatMap(({ loss }) => loss ?? []);

const ARGS = { learning_rate: 0.01, logging_steps: 1, per_device_train_batch_size: 4 } as const;

describe("options", () => {
  test.each([
    [{ learning_rat: 1 }, /no option "learning_rat".*learning_rate/],
    [{ learning_rate: -1 }, /learning_rate must be a number of 0 or more/],
    [{ optim: "adam" }, /optim must be one of adamw_torch, sgd, lars, got "adam"/],
    [{ per_device_train_batch_size: 0 }, /per_device_train_batch_size must be a positive integer/],
    [{ num_train_epochs: Number.NaN }, /num_train_epochs/],
    [{ lr_scheduler_type: "sawtooth" }, /lr_scheduler_type must be one of linear, cosine/],
    [{ gradient_checkpointing: "yes" }, /gradient_checkpointing must be true or false/],
    [{ save_strategy: "epoch" }, /save_strategy "epoch" needs an output_dir/],
    [{ load_best_model_at_end: true }, /eval_strategy and save_strategy to be the same/],
    [{ label_smoothing_factor: 1.5 }, /label_smoothing_factor must be a number from 0 to 1/],
  ])("%o is refused by name", (options, message) => {
    expect(() => new TrainingArguments(options as TrainingOptions)).toThrow(message);
  });

  test("defaults are transformers'", () => {
    expect(new TrainingArguments()).toMatchObject({
      num_train_epochs: 3,
      max_steps: -1,
      per_device_train_batch_size: 8,
      learning_rate: 5e-5,
      weight_decay: 0,
      max_grad_norm: 1,
      lr_scheduler_type: "linear",
      logging_steps: 500,
      save_strategy: "no",
      seed: 42,
      greater_is_better: false,
    });
    expect(new TrainingArguments({ metric_for_best_model: "eval_accuracy" })).toMatchObject({
      metric_for_best_model: "accuracy",
      greater_is_better: true,
    });
  });

  test("warm-up is a number of steps or a share of them", () => {
    expect(new TrainingArguments({ warmup_steps: 7 }).get_warmup_steps(100)).toBe(7);
    expect(new TrainingArguments({ warmup_steps: 0.07 }).get_warmup_steps(101)).toBe(8);
    expect(new TrainingArguments({ warmup_ratio: 0.1 }).get_warmup_steps(101)).toBe(11);
  });
});

describe("schedules", () => {
  /** A rate of 1e-6 makes the end of "polynomial", 1e-7, a tenth of it. */
  const STEPS = { total: 10, warmup: 2, learning_rate: 1e-6 };

  test("a polynomial schedule needs a rate above its end", () => {
    expect(() => new TrainingArguments({ lr_scheduler_type: "polynomial", learning_rate: 1e-7 })).toThrow(
      /learning_rate must be above 1e-7/,
    );
    new TrainingArguments({ lr_scheduler_type: "polynomial", learning_rate: 2e-7 });
    new TrainingArguments({ learning_rate: 1e-8 });
  });

  /** transformers' and torch's, for 10 steps with 2 of warm-up. */
  test.each([
    ["linear", [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]],
    ["cosine", [0, 0.5, 1, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806]],
    ["constant", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]],
    ["constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]],
    ["polynomial", [0, 0.5, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1, 0.1]],
    ["one_cycle", [0.04, 1, 0.96194, 0.853554, 0.691343, 0.500002, 0.30866, 0.14645, 0.038064, 4e-6]],
  ] as const)("%s", (name, wanted) => {
    const factors = wanted.map((_, step) => learning_rate_factor(name, step, STEPS));
    for (const [i, factor] of factors.entries())
      expect(factor, `step ${i}`).toBeCloseTo(wanted[i] as number, 5);
  });
});

describe("learning", () => {
  test.each([
    { optim: "adamw_torch", learning_rate: 0.01 },
    { optim: "sgd", learning_rate: 0.1, nesterov: true },
    { optim: "lars", learning_rate: 0.1, lars_trust_coefficient: 0.1 },
  ] as const)("%o distinguishes three kinds of images", async (options) => {
    const model = await new_model();
    const before = model.memory();
    const train_dataset = images(24);
    const trainer = new Trainer({
      model,
      train_dataset,
      args: { ...ARGS, ...options, num_train_epochs: 20 },
    });
    const { global_step, training_loss } = await trainer.train();
    expect(global_step).toBe(120);
    expect(training_loss).toBeLessThan(1);
    const { eval_accuracy, eval_loss } = await trainer.evaluate(train_dataset);
    expect(eval_accuracy).toBeGreaterThan(0.95);
    expect(eval_loss).toBeLessThan(0.4);
    expect(model.memory().handles).toBe(before.handles);
    expect(model.memory().bytes).toBe(before.bytes);
    await model.dispose();
  });

  test.each([
    { optim: "sgd", learning_rate: 0.1, weight_decay: 0.1 },
    { optim: "sgd", learning_rate: 0.1, momentum: 0 },
    { optim: "adamw_torch", learning_rate: 0.01, weight_decay: 0.1 },
  ] as const)("three steps of %o match its definition", async (options) => {
    const train_dataset = images(4);
    const pixels = train_dataset.flatMap(({ pixel_values }) => [...pixel_values.data]);
    const inputs = {
      pixel_values: new Tensor("float32", pixels, [4, 3, 8, 8]),
      labels: train_dataset.map(({ label }) => label),
    };
    const model = await new_model();
    const wanted = new Map<string, Float64Array>();
    const buffers = new Map<string, { m: Float64Array; v: Float64Array }>();
    const {
      optim,
      learning_rate: rate,
      weight_decay = 0,
      momentum = 0.9,
    } = options as TrainingOptions & {
      learning_rate: number;
    };
    const args = {
      ...ARGS,
      ...options,
      max_steps: 1,
      lr_scheduler_type: "constant",
      max_grad_norm: 0,
    } as const;
    const directory = await temporary_directory();
    for (let step = 1; step <= 3; step++) {
      const { gradients } = await compute_gradients(model, inputs);
      const now = parse_tensors(await saved_weights(model));
      for (const [key, { data }] of gradients) {
        const name = key.startsWith("classifier.") ? key : `vit.${key}`;
        const value = wanted.get(key) ?? Float64Array.from(now.get(name)?.data as Float32Array);
        const { m, v } = buffers.get(key) ?? {
          m: new Float64Array(data.length),
          v: new Float64Array(data.length),
        };
        const is_decayed = !/bias$|layernorm/.test(key);
        const decay = is_decayed ? weight_decay : 0;
        for (const [i, gradient] of data.entries()) {
          const before = value[i] as number;
          if (optim === "sgd") {
            const total = gradient + decay * before;
            m[i] = step === 1 ? total : momentum * (m[i] as number) + total;
            value[i] = before - rate * (momentum === 0 ? total : (m[i] as number));
          } else {
            m[i] = 0.9 * (m[i] as number) + 0.1 * gradient;
            v[i] = 0.999 * (v[i] as number) + 0.001 * gradient * gradient;
            const [first, second] = [
              (m[i] as number) / (1 - 0.9 ** step),
              (v[i] as number) / (1 - 0.999 ** step),
            ];
            value[i] = before * (1 - rate * decay) - (rate * first) / (Math.sqrt(second) + 1e-8);
          }
        }
        wanted.set(key, value);
        buffers.set(key, { m, v });
      }
      const trainer = new Trainer({
        model,
        train_dataset,
        args: { ...args, max_steps: step, output_dir: directory.target, save_steps: 1 },
      });
      await trainer.train({ resume_from_checkpoint: true });
    }
    const found = parse_tensors(await saved_weights(model));
    for (const [key, values] of wanted) {
      // The gradient by keys' biases is rounding alone, which AdamW takes at its full rate.
      if (key.endsWith("key.bias")) continue;
      const name = key.startsWith("classifier.") ? key : `vit.${key}`;
      expect(max_difference(found.get(name)?.data as Float32Array, values), key).toBeLessThan(1e-5);
    }
    await Promise.all([model.dispose(), directory.remove()]);
  });

  test("the same seed gives the same bits; another one, or dropout, gives others", async () => {
    const run = async (args: TrainingOptions, config = {}) => {
      const model = await new_model(config);
      const trainer = new Trainer({
        model,
        train_dataset: images(10),
        args: { ...ARGS, max_steps: 6, ...args },
      });
      await trainer.train();
      const weights = await saved_weights(model);
      await model.dispose();
      return { losses: losses(trainer), weights };
    };
    const first = await run({});
    expect(await run({})).toEqual(first);
    expect((await run({ gradient_checkpointing: true })).weights).toEqual(first.weights);
    expect((await run({ data_seed: 7 })).losses).not.toEqual(first.losses);
    const dropped = await run({}, { hidden_dropout_prob: 0.3 });
    expect(dropped.losses[0]).not.toBe(first.losses[0]);
    expect(await run({}, { hidden_dropout_prob: 0.3 })).toEqual(dropped);
    const again = await run({ gradient_checkpointing: true }, { hidden_dropout_prob: 0.3 });
    expect(again.weights).toEqual(dropped.weights);
    const attention = { attention_probs_dropout_prob: 0.3 };
    const thinned = await run({}, attention);
    expect(thinned.losses[0]).not.toBe(first.losses[0]);
    expect((await run({ gradient_checkpointing: true }, attention)).weights).toEqual(thinned.weights);
    expect((await run({ seed: 43, data_seed: 42 }, { hidden_dropout_prob: 0.3 })).losses).not.toEqual(
      dropped.losses,
    );
  });

  test("accumulated batches are one large batch", async () => {
    const run = async (args: TrainingOptions) => {
      const model = await new_model();
      const trainer = new Trainer({
        model,
        train_dataset: images(24),
        args: { ...ARGS, max_steps: 5, ...args },
      });
      await trainer.train();
      await model.dispose();
      return losses(trainer);
    };
    const large = await run({ per_device_train_batch_size: 8 });
    const small = await run({ per_device_train_batch_size: 2, gradient_accumulation_steps: 4 });
    for (const [i, loss] of large.entries()) expect(small[i]).toBeCloseTo(loss, 5);
  });

  test("accumulated batches of unequal numbers of labels are one large batch", async () => {
    // -100 leaves an image out of the loss: the batches count two, one, none and two of their images.
    const labels = [0, 1, -100, 2, -100, -100, 1, 0];
    const train_dataset = images(8).map((image, i) => ({ ...image, label: labels[i] as number }));
    const run = async (args: TrainingOptions) => {
      const model = await new_model();
      const trainer = new Trainer({ model, train_dataset, args: { ...ARGS, max_steps: 4, ...args } });
      await trainer.train();
      const weights = parse_tensors(await saved_weights(model));
      await model.dispose();
      return { losses: losses(trainer), weights };
    };
    const sgd = { optim: "sgd", learning_rate: 0.1 } as const;
    const large = await run({ ...sgd, per_device_train_batch_size: 8 });
    const small = await run({ ...sgd, per_device_train_batch_size: 2, gradient_accumulation_steps: 4 });
    for (const [i, loss] of large.losses.entries()) expect(small.losses[i]).toBeCloseTo(loss, 5);
    for (const [key, { data }] of large.weights) {
      const found = small.weights.get(key)?.data as Float32Array;
      expect(max_difference(found, data as Float32Array), key).toBeLessThan(1e-5);
    }
  });

  test("every step drops other values, and so does every batch of a step", async () => {
    const model = await new_model({ hidden_dropout_prob: 0.3 });
    const [one] = images(1) as [Example];
    const still = { ...ARGS, learning_rate: 0, max_steps: 4, per_device_train_batch_size: 1 };
    const trainer = new Trainer({ model, train_dataset: [one], args: still });
    await trainer.train();
    expect(new Set(losses(trainer)).size).toBe(4);
    // The mean over two batches with one mask would be the first step's loss.
    const accumulating = new Trainer({
      model,
      train_dataset: [one, one],
      args: { ...still, max_steps: 1, gradient_accumulation_steps: 2 },
    });
    await accumulating.train();
    expect(losses(accumulating)[0]).not.toBeCloseTo(losses(trainer)[0] as number, 6);
    await model.dispose();
  });

  test.each(["float16", "bfloat16"] as const)("a %s model learns, and is what it saves", async (dtype) => {
    const model = await new_model({}, { dtype });
    const train_dataset = images(24);
    const trainer = new Trainer({
      model,
      train_dataset,
      args: { ...ARGS, num_train_epochs: 20 },
    });
    await trainer.train();
    expect((await trainer.evaluate(train_dataset)).eval_accuracy).toBeGreaterThan(0.95);
    const directory = await temporary_directory();
    await trainer.save_model(directory.target);
    const again = await ViTMSNForImageClassification.from_pretrained(await directory.read_files(), { dtype });
    const pixel_values = new Tensor(
      "float32",
      (images(1)[0] as Example & { pixel_values: Tensor<"float32"> }).pixel_values.data,
      [1, 3, 8, 8],
    );
    expect((await again.forward({ pixel_values })).logits).toEqual(
      (await model.forward({ pixel_values })).logits,
    );
    await Promise.all([model.dispose(), again.dispose(), directory.remove()]);
  });

  test("frozen parameters keep their bits", async () => {
    const model = await new_model();
    const before = await saved_weights(model);
    const args = { ...ARGS, max_steps: 3, freeze_layers: 1, weight_decay: 0.1 };
    await new Trainer({ model, train_dataset: images(8), args }).train();
    const after = await saved_weights(model);
    const length = new DataView(before.buffer, before.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(before.subarray(8, 8 + length)));
    for (const [key, { data_offsets }] of Object.entries<{ data_offsets: [number, number] }>(header)) {
      if (key === "__metadata__") continue;
      const [start, end] = data_offsets.map((offset) => 8 + length + offset) as [number, number];
      const is_frozen = key.startsWith("vit.embeddings.") || key.startsWith("vit.encoder.layer.0.");
      const same = before.subarray(start, end).every((byte, i) => byte === after[start + i]);
      expect(same, key).toBe(is_frozen);
    }
    await model.dispose();
  });

  test("layer_decay makes lower layers learn more slowly", async () => {
    const model = await new_model();
    const moved = async (layer_decay: number) => {
      const trainer = new Trainer({
        model,
        train_dataset: images(8),
        args: { ...ARGS, max_steps: 1, layer_decay, optim: "sgd", lr_scheduler_type: "constant" },
      });
      await trainer.train();
    };
    await moved(0); // only what is above the layers learns at a decay of 0
    const keys = await saved_weights(model);
    await moved(0);
    expect(await saved_weights(model)).not.toEqual(keys);
    await model.dispose();
  });

  test("several labels and values to predict", async () => {
    for (const [config, label] of [
      [{ problem_type: "multi_label_classification" }, (i: number) => [i % 2, 1, 0]],
      [{ num_labels: 1, problem_type: "regression" }, (i: number) => (i % 3) / 2],
    ] as const) {
      const model = await new_model(config);
      const train_dataset = images(12).map((example, i) => ({ ...example, label: label(i) }));
      const trainer = new Trainer({ model, train_dataset, args: { ...ARGS, num_train_epochs: 15 } });
      await trainer.train();
      const [first, last] = [losses(trainer)[0] as number, losses(trainer).at(-1) as number];
      expect(last).toBeLessThan(first / 2);
      expect(trainer.state.log_history[0]?.accuracy).toBeUndefined();
      const { eval_accuracy } = await trainer.evaluate(train_dataset);
      expect(eval_accuracy).toBeUndefined();
      await model.dispose();
    }
  });

  test("a loss that isn't finite stops it, names the step and doesn't change the model", async () => {
    const model = await new_model();
    const train_dataset = images(8);
    const args = { ...ARGS, optim: "sgd", learning_rate: 1e5, max_grad_norm: 0, max_steps: 50 } as const;
    const error = await error_of(new Trainer({ model, train_dataset, args }).train());
    expect(error.code).toBe("DIVERGED");
    expect(error.message).toMatch(/ at step \d+ .*learning_rate/);
    expect(error.details.step).toBeGreaterThan(1);
    await model.dispose();
  });

  test("an int8 model is refused", async () => {
    const model = await new_model({}, { dtype: "int8" });
    expect(() => new Trainer({ model })).toThrow(/int8/);
    await model.dispose();
  });
});

describe("data", () => {
  test("a stream, tensors, labels by name, and missing labels", async () => {
    const model = await new_model({ id2label: { 0: "a", 1: "b", 2: "c" }, num_labels: 3 });
    const examples = images(9);
    const named = examples.map(({ pixel_values, label }) => ({
      pixel_values,
      label: "abc"[label] as string,
    }));
    const whole = Float32Array.from(examples.flatMap(({ pixel_values }) => [...pixel_values.data]));
    const data = {
      list: named,
      tensors: {
        pixel_values: new Tensor("float32", whole, [9, 3, 8, 8]),
        labels: examples.map(({ label }) => label),
      },
      dataset: { length: 9, get: async (i: number) => named[i] as Example },
    };
    const results = [];
    for (const eval_dataset of Object.values(data)) {
      const { eval_loss, eval_accuracy } = await new Trainer({ model, eval_dataset }).evaluate();
      results.push([eval_loss, eval_accuracy]);
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
    async function* stream() {
      yield* named;
    }
    const endless = new Trainer({ model, train_dataset: stream, args: { ...ARGS, max_steps: 5 } });
    await endless.train();
    expect(losses(endless)).toHaveLength(5);
    const unknown_length = new Trainer({ model, train_dataset: stream(), args: ARGS });
    expect((await error_of(unknown_length.train())).message).toMatch(/max_steps/);
    const ignoring = new Trainer({
      model,
      args: ARGS,
      train_dataset: examples.map((one) => ({ ...one, label: -100 })),
    });
    await ignoring.train();
    expect(losses(ignoring)).toEqual([]);
    await model.dispose();
  });

  test.each([
    [[], /train_dataset is empty/],
    [
      [{ pixel_values: new Tensor("float32", new Float32Array(PIXELS), [3, 8, 8]), label: "z" }],
      /no class "z".*LABEL_0/,
    ],
    [
      [{ pixel_values: new Tensor("float32", new Float32Array(PIXELS), [3, 8, 8]), label: 3 }],
      /labels holds 3/,
    ],
    [[{ pixel_values: new Tensor("float32", new Float32Array(PIXELS), [3, 8, 8]) }], /no labels/],
    [[{ label: 1 }], /neither image nor pixel_values/],
    [[{ image: new RawImage(new Uint8Array(192), 8, 8, 3), label: 1 }], /image processor is needed/],
    [
      [{ pixel_values: new Tensor("float32", new Float32Array(48), [3, 4, 4]), label: 1 }],
      /Input image size/,
    ],
    [7 as unknown as Example[], /train_dataset must be a list/],
  ])("%# is a one-sentence error", async (train_dataset, message) => {
    const model = await new_model();
    const error = await error_of(new Trainer({ model, train_dataset, args: ARGS }).train());
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toMatch(message);
    await model.dispose();
  });

  test("each image gets other random numbers in each epoch, the same ones when resumed", async () => {
    const image_processor = new ViTImageProcessor({ size: { height: 8, width: 8 } });
    const train_dataset = [0, 1].map((label) => ({
      image: new RawImage(new Uint8Array(3 * 8 * 8).fill(100 + label), 8, 8, 3),
      label,
    }));
    const drawn = async (
      { target }: TemporaryDirectory,
      num_train_epochs: number,
      resume_from_checkpoint: boolean,
    ) => {
      const model = await new_model();
      const numbers: string[] = [];
      const trainer = new Trainer({
        model,
        image_processor,
        train_dataset,
        train_transform: (image, random) => {
          numbers.push(`image ${image.data[0]}: ${random.bits()}`);
          return image;
        },
        args: { ...ARGS, num_train_epochs, output_dir: target, save_strategy: "epoch" },
      });
      await trainer.train({ resume_from_checkpoint });
      await model.dispose();
      return numbers;
    };
    const [one, two] = [await temporary_directory(), await temporary_directory()];
    const whole = await drawn(one, 3, false);
    expect(new Set(whole).size).toBe(6);
    const first = await drawn(two, 2, false);
    expect(first).toEqual(whole.slice(0, 4));
    expect(await drawn(two, 3, true)).toEqual(whole.slice(4));
    await Promise.all([one.remove(), two.remove()]);
  });

  test("an image that can't be read stops it by name, or is skipped with a warning", async () => {
    const model = await new_model();
    const image_processor = new ViTImageProcessor({ size: 8 });
    const sound = new RawImage(new Uint8Array(192).fill(9), 8, 8, 3);
    const broken = new File([new Uint8Array([1, 2, 3])], "broken.png");
    const train_dataset = [
      { image: sound, label: 0 },
      { image: broken, label: 1 },
    ];
    const options = { model, image_processor, train_dataset, args: { ...ARGS, max_steps: 4 } };
    const error = await error_of(new Trainer(options).train());
    expect(error.code).toBe("INVALID_IMAGE");
    expect(error.message).toMatch(/broken\.png.*unreadable_images/);
    const trainer = new Trainer({ ...options, unreadable_images: "skip" });
    await trainer.train();
    expect(losses(trainer)).toHaveLength(4);
    expect(env.warn).toHaveBeenCalledTimes(1);
    expect(env.warn).toHaveBeenCalledWith(expect.stringMatching(/Skipped .*broken\.png/));
    await model.dispose();
  });
});

describe("other resolutions", () => {
  const large = (count: number) =>
    new Tensor(
      "float32",
      Float32Array.from({ length: count * 3 * 144 }, (_, i) => Math.sin(i)),
      [count, 3, 12, 12],
    );

  test("interpolate_pos_encoding passes from batches to the forward pass, in training and evaluation", async () => {
    const model = await new_model();
    const trainer = new Trainer({
      model,
      train_dataset: images(8),
      eval_dataset: images(4),
      data_collator: async (drawn) => ({
        pixel_values: large(drawn.length),
        labels: new Tensor(
          "int32",
          drawn.map(() => 1),
          [drawn.length],
        ),
        interpolate_pos_encoding: true,
      }),
      args: { ...ARGS, max_steps: 2 },
    });
    await trainer.train();
    expect(losses(trainer)).toHaveLength(2);
    const { logits } = await model.forward({ pixel_values: large(4), interpolate_pos_encoding: true });
    const { predictions } = await trainer.predict(images(4));
    expect(max_difference(predictions.data, logits.data)).toBeLessThan(1e-6);
    await model.dispose();
  });

  test("a checkpoint is fine-tuned and saved at the image_size of the config", async () => {
    const small = await new_model();
    const directory = await temporary_directory();
    await small.save_pretrained(directory.target);
    await small.dispose();
    const files = await directory.read_files();
    const model = await ViTMSNForImageClassification.from_pretrained(files, { config: { image_size: 12 } });
    const data = Array.from({ length: 8 }, (_, i) => ({
      pixel_values: new Tensor("float32", large(8).data.subarray(i * 432, (i + 1) * 432), [3, 12, 12]),
      label: i % 3,
    }));
    const trainer = new Trainer({ model, train_dataset: data, args: { ...ARGS, max_steps: 2 } });
    await trainer.train();
    await model.save_pretrained(directory.target);
    const again = await ViTMSNForImageClassification.from_pretrained(await directory.read_files());
    expect(again.config.image_size).toBe(12);
    const inputs = { pixel_values: large(2) };
    const [before, after] = [await model.forward(inputs), await again.forward(inputs)];
    expect(max_difference(before.logits.data, after.logits.data)).toBeLessThan(1e-6);
    await Promise.all([model.dispose(), again.dispose()]);
    await directory.remove();
  });
});

test("out of memory: the error names what saves memory in training", async () => {
  const model = await new_model();
  const trainer = new Trainer({
    model,
    train_dataset: images(4),
    args: { ...ARGS, max_steps: 1 },
    data_collator: async () => {
      throw new VitMsnError("OUT_OF_MEMORY", "The engine can't allocate 5 bytes: use a half-width dtype.");
    },
  });
  const error = await error_of(trainer.train());
  expect([error.code, error.message]).toEqual([
    "OUT_OF_MEMORY",
    expect.stringMatching(/gradient_checkpointing, or a smaller per_device_train_batch_size/),
  ]);
  expect(error.message).not.toMatch(/half-width/);
  await model.dispose();
});

describe("evaluation and callbacks", () => {
  test("predictions, custom metrics and what callbacks receive", async () => {
    const model = await new_model();
    const seen: string[] = [];
    const note = (name: string) => () => void seen.push(name);
    const trainer = new Trainer({
      model,
      train_dataset: images(6),
      eval_dataset: images(5),
      args: { ...ARGS, per_device_eval_batch_size: 2, num_train_epochs: 1, eval_strategy: "epoch" },
      compute_metrics: ({ predictions, label_ids }) => ({
        rows: predictions.dims[0] as number,
        labels: label_ids.size,
      }),
      callbacks: [
        {
          on_train_begin: note("begin"),
          on_epoch_begin: note("epoch"),
          on_step_end: ({ loss, accuracy, eta_seconds, learning_rate }) => {
            seen.push("step");
            expect([loss, accuracy, eta_seconds, learning_rate].every(Number.isFinite)).toBe(true);
          },
          on_log: note("log"),
          on_prediction_step: note("prediction"),
          on_evaluate: note("evaluate"),
          on_epoch_end: note("epoch end"),
          on_train_end: note("end"),
        },
      ],
    });
    await trainer.train();
    expect(seen).toEqual(
      "begin,epoch,step,log,step,log,epoch end,prediction,prediction,prediction,log,evaluate,log,end".split(
        ",",
      ),
    );
    expect(trainer.state.log_history.at(-2)).toMatchObject({
      eval_rows: 5,
      eval_labels: 5,
      epoch: 1,
      step: 2,
    });
    const { predictions, label_ids, metrics } = await trainer.predict(images(5));
    expect(predictions.dims).toEqual([5, 3]);
    expect(label_ids?.tolist()).toEqual([0, 1, 2, 0, 1]);
    expect(metrics.test_rows).toBe(5);
    const unlabelled = await trainer.predict(images(2).map(({ pixel_values }) => ({ pixel_values })));
    expect([unlabelled.label_ids, unlabelled.metrics.test_loss]).toEqual([undefined, undefined]);
    await model.dispose();
  });

  test("stops early, and keeps the best model", async () => {
    const directory = await temporary_directory();
    const model = await new_model();
    let evaluations = 0;
    const metric = [3, 1, 2, 2];
    const trainer = new Trainer({
      model,
      train_dataset: images(8),
      eval_dataset: images(3),
      args: {
        ...ARGS,
        output_dir: directory.target,
        num_train_epochs: 10,
        eval_strategy: "epoch",
        save_strategy: "epoch",
        save_total_limit: 2,
        load_best_model_at_end: true,
        metric_for_best_model: "worry",
        greater_is_better: false,
      },
      compute_metrics: () => ({ worry: metric[evaluations++] as number }),
      callbacks: [new EarlyStoppingCallback({ early_stopping_patience: 2 })],
    });
    let best: Uint8Array | undefined;
    trainer.add_callback({
      on_save: async ({ checkpoint }) => {
        if (checkpoint === "checkpoint-4") best = await saved_weights(model);
      },
    });
    const { global_step } = await trainer.train();
    expect(global_step).toBe(8);
    expect(trainer.state).toMatchObject({
      best_metric: 1,
      best_global_step: 4,
      best_model_checkpoint: "checkpoint-4",
    });
    expect(await saved_weights(model)).toEqual(best);
    expect((await directory.list()).sort()).toEqual(["checkpoint-4", "checkpoint-8"]);
    await Promise.all([model.dispose(), directory.remove()]);
  });

  test("of equal metrics, the first is the best", async () => {
    const model = await new_model();
    const trainer = new Trainer({
      model,
      train_dataset: images(8),
      eval_dataset: images(3),
      args: { ...ARGS, num_train_epochs: 3, eval_strategy: "epoch", metric_for_best_model: "joy" },
      compute_metrics: () => ({ joy: 1 }),
    });
    await trainer.train();
    expect(trainer.state).toMatchObject({ best_metric: 1, best_global_step: 2 });
    await model.dispose();
  });

  test("the loss is the mean over images, whatever the batches", async () => {
    const model = await new_model();
    const data = images(5);
    const loss_of = async (per_device_eval_batch_size: number) => {
      const trainer = new Trainer({ model, args: { per_device_eval_batch_size } });
      return (await trainer.evaluate(data)).eval_loss as number;
    };
    const each = await Promise.all(
      data.map(async ({ pixel_values, label }) => {
        const pixels = new Tensor("float32", pixel_values.data, [1, 3, 8, 8]);
        const { logits } = await model.forward({ pixel_values: pixels });
        const exps = [...(logits.data as Float32Array)].map(Math.exp);
        return Math.log(exps.reduce((a, b) => a + b, 0)) - Math.log(exps[label] as number);
      }),
    );
    const expected = each.reduce((a, b) => a + b, 0) / each.length;
    for (const batch_size of [1, 2, 3, 5]) expect(await loss_of(batch_size)).toBeCloseTo(expected, 5);
    await model.dispose();
  });

  test("an abort ends it", async () => {
    const model = await new_model();
    const { handles } = model.memory();
    const controller = new AbortController();
    const callbacks = [{ on_step_end: () => controller.abort() }];
    const trainer = new Trainer({ model, train_dataset: images(8), args: ARGS, callbacks });
    expect((await error_of(trainer.train({ signal: controller.signal }))).code).toBe("ABORTED");
    expect(model.memory().handles).toBe(handles);
    expect((await error_of(trainer.train({ signal: AbortSignal.abort() }))).code).toBe("ABORTED");
    await model.dispose();
  });

  test("two trainings at once are refused", async () => {
    const model = await new_model();
    const trainer = new Trainer({ model, train_dataset: images(8), args: { ...ARGS, max_steps: 2 } });
    const first = trainer.train();
    expect((await error_of(trainer.train())).message).toMatch(/already training/);
    await first;
    await model.dispose();
  });
});

describe("checkpoints", () => {
  const CASES = [
    { dtype: "float32", optim: "adamw_torch" },
    { dtype: "float16", optim: "adamw_torch" },
    { dtype: "float32", optim: "sgd" },
  ] as const;

  test.each(CASES)("an interrupted and resumed run gives the same bits: %o", async ({ dtype, optim }) => {
    const whole = await temporary_directory();
    const broken = await temporary_directory();
    const args = {
      ...ARGS,
      optim,
      max_steps: 14,
      gradient_accumulation_steps: 2,
      logging_steps: 3,
      save_steps: 4,
      eval_strategy: "steps",
      eval_steps: 5,
    } as const;
    const make = async (output_dir: TrainingOptions["output_dir"], stop_at: number) => {
      const model = await new_model({ hidden_dropout_prob: 0.1 }, { dtype });
      const trainer = new Trainer({
        model,
        train_dataset: images(22),
        eval_dataset: images(5),
        args: { ...args, output_dir },
        callbacks: [
          {
            on_step_end: ({ state, control }) => {
              if (state.global_step === stop_at) control.should_training_stop = true;
            },
          },
        ],
      });
      return { model, trainer };
    };
    const finish = async ({ model, trainer }: Awaited<ReturnType<typeof make>>) => {
      const kept = trainer.state.log_history.map(({ loss, eval_loss, accuracy, step, epoch }) => ({
        loss,
        eval_loss,
        accuracy,
        step,
        epoch,
      }));
      const weights = await saved_weights(model);
      await model.dispose();
      return { kept, weights };
    };
    const undisturbed = await make(whole.target, -1);
    await undisturbed.trainer.train();
    const wanted = await finish(undisturbed);
    const first = await make(broken.target, 7);
    await first.trainer.train({ resume_from_checkpoint: true });
    await first.model.dispose();
    expect((await broken.list()).sort()).toEqual(["checkpoint-4"]);
    const second = await make(broken.target, -1);
    await second.trainer.train({ resume_from_checkpoint: true });
    expect(await finish(second)).toEqual(wanted);
    expect((await broken.list()).sort()).toEqual([
      "checkpoint-12",
      "checkpoint-14",
      "checkpoint-4",
      "checkpoint-8",
    ]);
    // By name, from an earlier one.
    const third = await make(broken.target, -1);
    await third.trainer.train({ resume_from_checkpoint: "checkpoint-8" });
    expect(await finish(third)).toEqual(wanted);
    await Promise.all([whole.remove(), broken.remove()]);
  });

  test("a damaged checkpoint is named; the one before it is used", async () => {
    const directory = await temporary_directory();
    const args = { ...ARGS, max_steps: 3, save_steps: 1, output_dir: directory.target };
    const run = async (resume_from_checkpoint: boolean | string) => {
      const model = await new_model();
      const trainer = new Trainer({ model, train_dataset: images(8), args });
      try {
        await trainer.train({ resume_from_checkpoint });
        return losses(trainer);
      } finally {
        await model.dispose();
      }
    };
    const wanted = await run(false);
    for (const [name, file, change] of [
      ["checkpoint-3", "optimizer.safetensors", (bytes: Uint8Array) => bytes.subarray(0, 1000)],
      ["checkpoint-2", "trainer_state.json", (bytes: Uint8Array) => bytes.subarray(0, 50)],
    ] as const) {
      await directory.change(name, file, change);
      const error = await error_of(run(name));
      expect(error.code).toBe("INVALID_CHECKPOINT");
      expect(error.message).toContain(file);
    }
    expect(await run(true)).toEqual(wanted);
    expect(env.warn).toHaveBeenCalledWith(expect.stringMatching(/Can't resume from .*checkpoint-2/));
    await directory.change("checkpoint-3", "model.safetensors", (bytes) => bytes.subarray(0, -1));
    expect((await error_of(run("checkpoint-3"))).code).toBe("INVALID_CHECKPOINT");
    await directory.remove();
  });

  test("a checkpoint's state names nothing outside of output_dir, and has the types that were written", async () => {
    const directory = await temporary_directory();
    const args: TrainingOptions = {
      ...ARGS,
      max_steps: 2,
      save_steps: 1,
      eval_steps: 1,
      output_dir: directory.target,
      eval_strategy: "steps",
      save_strategy: "steps",
      load_best_model_at_end: true,
    };
    const model = await new_model();
    const data = images(8);
    const trainer = new Trainer({ model, train_dataset: data, eval_dataset: data, args });
    await trainer.train();
    for (const damage of [
      ...["../evil", "/checkpoint-1", "checkpoint-1/../../evil", "checkpoint-x", "", 1, {}, []].map(
        (best_model_checkpoint) => ({ best_model_checkpoint }),
      ),
      ...[
        { best_metric: "high" },
        { best_global_step: {} },
        { log_history: [null] },
        { log_history: [{ loss: "x" }] },
      ],
      ...[{ stateful_callbacks: null }, { running: 1 }, { total_loss: null }, { global_step: -1 }],
    ]) {
      const change = (bytes: Uint8Array) =>
        new TextEncoder().encode(
          JSON.stringify({ ...JSON.parse(new TextDecoder().decode(bytes)), ...damage }),
        );
      let saved = new Uint8Array();
      await directory.change("checkpoint-2", "trainer_state.json", (bytes) => {
        saved = bytes.slice();
        return change(bytes);
      });
      const { code } = await error_of(trainer.train({ resume_from_checkpoint: "checkpoint-2" }));
      expect(code, JSON.stringify(damage)).toBe("INVALID_CHECKPOINT");
      await directory.change("checkpoint-2", "trainer_state.json", () => saved);
    }
    await Promise.all([model.dispose(), directory.remove()]);
  });

  test("options that changed since the checkpoint are named, and refused where that is asked for", async () => {
    const directory = await temporary_directory();
    const args = { ...ARGS, max_steps: 2, save_steps: 2, output_dir: directory.target };
    const model = await new_model();
    await new Trainer({ model, train_dataset: images(8), args }).train();
    const resume = (options: TrainingOptions, changed_options?: "error", count = 8) =>
      new Trainer({
        model,
        train_dataset: images(count),
        args: { ...args, max_steps: 3, ...options },
      }).train({
        resume_from_checkpoint: "checkpoint-2",
        ...(changed_options && { changed_options }),
      });
    // How long it goes on and what it says are no changes.
    await resume({ logging_steps: 2, save_steps: 3 }, "error");
    expect(env.warn).not.toHaveBeenCalled();
    await resume({ learning_rate: 0.02, weight_decay: 0.5 });
    expect(env.warn).toHaveBeenCalledWith(
      expect.stringMatching(
        / was written by a run with other options or data: learning_rate was 0\.01 and is 0\.02; weight_decay was 0 and is 0\.5\./,
      ),
    );
    const before = await saved_weights(model);
    const refused = await error_of(resume({ warmup_steps: 1 }, "error"));
    expect([refused.code, refused.message]).toEqual([
      "INVALID_ARGUMENT",
      expect.stringMatching(/warmup_steps was (?:unset|0) and is 1/),
    ]);
    expect((await error_of(resume({}, "error", 9))).message).toMatch(
      /train_dataset had 8 examples and has 9/,
    );
    expect(await saved_weights(model)).toEqual(before);
    await Promise.all([model.dispose(), directory.remove()]);
  });

  test("another model's checkpoint and another optimiser's are refused, and the model is as it was", async () => {
    const directory = await temporary_directory();
    const args = { ...ARGS, max_steps: 2, save_steps: 2, output_dir: directory.target };
    const model = await new_model();
    await new Trainer({ model, train_dataset: images(8), args }).train();
    const other = await new_model({ num_hidden_layers: 3 });
    const before = await saved_weights(other);
    const wrong = new Trainer({ model: other, train_dataset: images(8), args });
    expect((await error_of(wrong.train({ resume_from_checkpoint: true }))).code).toBe("CHECKPOINT_MISMATCH");
    expect(await saved_weights(other)).toEqual(before);
    const sgd = new Trainer({
      model,
      train_dataset: images(8),
      args: { ...args, optim: "sgd", max_steps: 3 },
    });
    expect((await error_of(sgd.train({ resume_from_checkpoint: true }))).message).toMatch(/optim/);
    await Promise.all([model.dispose(), other.dispose(), directory.remove()]);
  });

  test("resuming without a checkpoint starts from the beginning", async () => {
    const directory = await temporary_directory();
    const model = await new_model();
    const args = { ...ARGS, max_steps: 1, output_dir: directory.target };
    const { global_step } = await new Trainer({ model, train_dataset: images(8), args }).train({
      resume_from_checkpoint: true,
    });
    expect(global_step).toBe(1);
    await Promise.all([model.dispose(), directory.remove()]);
  });
});

test("where the clock doesn't advance, as browsers round it, metrics have no rates, and all are finite", async () => {
  const now = vi.spyOn(performance, "now").mockReturnValue(0);
  try {
    const model = await new_model();
    const train_dataset = images(4);
    const trainer = new Trainer({
      model,
      args: { ...ARGS, max_steps: 1, save_strategy: "no" },
      train_dataset,
    });
    const { metrics } = await trainer.train();
    const evaluated = await trainer.evaluate(train_dataset);
    expect([metrics.train_runtime, evaluated.eval_runtime]).toEqual([0, 0]);
    expect(Object.keys({ ...metrics, ...evaluated }).filter((name) => name.includes("per_second"))).toEqual(
      [],
    );
    for (const entry of trainer.state.log_history)
      for (const [name, value] of Object.entries(entry)) expect(value, name).toSatisfy(Number.isFinite);
    await model.dispose();
  } finally {
    now.mockRestore();
  }
});
