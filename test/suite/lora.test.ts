import { env, type PretrainedOptions, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { Trainer, TrainingArguments, type TrainingOptions } from "vit-msn/training";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { training_loss } from "../../ts/training/gradients.ts";
import { Parameters } from "../../ts/training/parameters.ts";
import { Tape } from "../../ts/training/tape.ts";
import { set_values } from "../../ts/training/tensor_values.ts";
import { raw_tensors, values_of } from "../support/checkpoints.ts";
import { type TemporaryDirectory, temporary_directory } from "../support/directories.ts";
import { open_device } from "../support/gpu_devices.ts";
import { fixture_files, saved_weights, TRAINABLE_CONFIG } from "../support/models.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

/** As test/reference/make_lora.py. */
const [RANK, ALPHA, RATE] = [3, 7, 0.5];
const LORA = {
  lora_r: RANK,
  lora_alpha: ALPHA,
  lora_dropout: 0,
  lora_target_modules: ["query", "value", "dense"],
  seed: 1,
};

const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_labels: 2,
};
const images = Array.from({ length: 8 }, (_, i) => {
  const values = Float32Array.from({ length: 192 }, (_, p) => Math.sin(p * ((i % 2) + 1) + i));
  return { pixel_values: new Tensor("float32", values, [3, 8, 8]), label: i % 2 };
});
const ARGS = { max_steps: 6, learning_rate: 0.02, per_device_train_batch_size: 4, logging_steps: 1 } as const;

type Values = Map<string, Float32Array>;

async function weights_of(model: ViTMSNForImageClassification): Promise<Values> {
  const tensors = raw_tensors(await saved_weights(model));
  return new Map([...tensors].map(([key, tensor]) => [key.replace(/^vit\./, ""), values_of(tensor)]));
}

const warn = env.warn;
beforeAll(() => {
  env.warn = () => {};
});
afterAll(() => {
  env.warn = warn;
});

/** Fused adapters from peft's, part by part. */
function fuse(expected: Map<string, FixtureTensor>, prefix: string, name: string): Float32Array {
  const [, layer, which] = /^(.*)\.(lora_[AB])\.weight$/.exec(name) as unknown as [string, string, string];
  const of = (key: string) => expected.get(`${prefix}.${key}.${which}.weight`)?.data as Float32Array;
  if (!layer.endsWith(".qkv")) return of(layer);
  const parts = ["query", "value"].map((part) => of(layer.replace(/qkv$/, `attention.${part}`)));
  const [query, value] = parts as [Float32Array, Float32Array];
  if (which === "lora_A") return Float32Array.of(...query, ...value);
  const width = query.length / RANK;
  const fused = new Float32Array(3 * width * 2 * RANK);
  for (let row = 0; row < width; row++) {
    fused.set(query.subarray(row * RANK, (row + 1) * RANK), row * 2 * RANK);
    fused.set(value.subarray(row * RANK, (row + 1) * RANK), (2 * width + row) * 2 * RANK + RANK);
  }
  return fused;
}

describe.each(no_webgpu === undefined ? ["wasm", "webgpu"] : ["wasm"])("on %s", (device) => {
  test("loss, gradients and merged weights are peft's", async () => {
    const options: PretrainedOptions = device === "webgpu" ? { device: await open_device() } : {};
    const expected = await read_tensors("test/fixtures/lora.safetensors");
    const inputs = await read_tensors("test/fixtures/tiny/expected.safetensors");
    const { data, dims } = inputs.get("in.pixel_values") as FixtureTensor;
    const pixel_values = new Tensor("float32", data as Float32Array, dims);
    const labels = Array.from(inputs.get("in.labels")?.data as BigInt64Array, Number);
    const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), options);
    const before = model.memory();
    const parameters = new Parameters(model, { lora: LORA });
    const engine = model.engine as ConstructorParameters<typeof Tape>[0];
    for (const { name, value } of parameters.trained)
      if (name.includes("lora_")) set_values(engine, value, fuse(expected, "start", name));
    parameters.write_back();
    const tape = new Tape(engine, parameters);
    const loss = await model.with_logits(
      { pixel_values },
      async (logits, scope) => {
        const handle = training_loss(tape, scope, logits, labels, model.config, 0);
        await tape.backward(handle);
        return (await tape.read(handle))[0] as number;
      },
      tape,
    );
    tape.close();
    expect(loss).toBeCloseTo(Number(expected.get("loss")?.data[0]), 5);
    let compared = 0;
    for (const { name, gradient, value } of parameters.trained) {
      const found = await engine.read(gradient as NonNullable<typeof gradient>);
      engine.accumulate(value, gradient as NonNullable<typeof gradient>, -RATE);
      if (!name.includes("lora_")) continue;
      const reference = fuse(expected, "grad", name);
      const scale = reference.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      expect(max_difference(found, reference) / scale, name).toBeLessThan(1e-4);
      compared++;
    }
    expect(compared).toBe(3 * 4 * 2);
    parameters.write_back();
    parameters.merge_adapters(true);
    await parameters.dispose();
    for (const [key, values] of await weights_of(model)) {
      const reference = expected.get(`merged.${key}`)?.data as Float32Array;
      expect(max_difference(values, reference), key).toBeLessThan(2e-5);
    }
    expect(model.memory()).toMatchObject({ handles: before.handles, bytes: before.bytes });
    await model.dispose();
  });
});

async function run(
  args: TrainingOptions,
  { dtype = "float32" as "float32" | "bfloat16", stop_at = -1, evaluates = false } = {},
) {
  const model = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3, dtype });
  const before = await weights_of(model);
  const memory = model.memory();
  const trainer = new Trainer({
    model,
    train_dataset: images,
    eval_dataset: images,
    args: { ...ARGS, lora_r: 4, ...args },
    callbacks: [
      {
        on_step_end: async ({ state, control }) => {
          if (state.global_step === stop_at) control.should_training_stop = true;
          if (evaluates) await trainer.evaluate();
        },
      },
    ],
  });
  await trainer.train({ resume_from_checkpoint: args.output_dir !== undefined });
  const file = await saved_weights(model);
  const after = await weights_of(model);
  expect(model.memory()).toMatchObject({ handles: memory.handles, bytes: memory.bytes });
  const metrics = await trainer.evaluate();
  await model.dispose();
  const losses = trainer.state.log_history.flatMap(({ loss }) => loss ?? []);
  return { file, before, after, losses, metrics, history: trainer.state.log_history };
}

test("only targeted layers and the classifier change, and learn", async () => {
  const { before, after, losses } = await run({ max_steps: 30 });
  const changed = [...after].flatMap(([key, values]) =>
    max_difference(values, before.get(key) as Float32Array) > 0 ? key : [],
  );
  const layers = [0, 1].flatMap((i) =>
    ["query", "value"].map((name) => `encoder.layer.${i}.attention.attention.${name}.weight`),
  );
  expect(changed.sort()).toEqual(["classifier.bias", "classifier.weight", ...layers]);
  expect(losses.at(-1)).toBeLessThan(0.5 * (losses[0] as number));
});

test("evaluations see the merged weights and disturb nothing; recomputing and dropout give the same bits", async () => {
  const plain = await run({});
  const watched = await run({}, { evaluates: true });
  expect(watched.file).toEqual(plain.file);
  const evaluated = watched.history.filter(({ eval_loss }) => eval_loss !== undefined);
  expect(evaluated[5]?.eval_loss).toBe(plain.metrics.eval_loss);
  expect((await run({ gradient_checkpointing: true })).file).toEqual(plain.file);
  const dropped = await run({ lora_dropout: 0.3 });
  expect(dropped.file).not.toEqual(plain.file);
  expect((await run({ lora_dropout: 0.3, gradient_checkpointing: true })).file).toEqual(dropped.file);
});

test.each([
  { dtype: "float32", ema_decay: 0 },
  { dtype: "float32", ema_decay: 0.8 },
  { dtype: "bfloat16", ema_decay: 0 },
] as const)("a resumed run has the same bits: %o", async ({ dtype, ema_decay }) => {
  const [whole, broken] = [await temporary_directory(), await temporary_directory()];
  const args = ({ target }: TemporaryDirectory) => ({ output_dir: target, save_steps: 2, ema_decay });
  const wanted = await run(args(whole), { dtype });
  await run(args(broken), { dtype, stop_at: 3 });
  expect((await run(args(broken), { dtype })).file).toEqual(wanted.file);
  let saved: Uint8Array | undefined;
  await whole.change("checkpoint-6", "model.safetensors", (bytes) => {
    saved = bytes;
    return bytes;
  });
  expect(saved).toEqual(wanted.file);
  await Promise.all([whole.remove(), broken.remove()]);
});

test("wrong options are refused by name", async () => {
  expect(() => new TrainingArguments({ lora_r: 4, freeze_backbone: true })).toThrow(
    /lora_r freezes everything/,
  );
  expect(() => new TrainingArguments({ lora_r: 4, lora_dropout: 1 })).toThrow(/lora_dropout must be below 1/);
  await expect(run({ lora_target_modules: ["quary"] })).rejects.toThrow(
    /lora_target_modules: no layer's name ends in "quary"; use some of query, key, value/,
  );
});
