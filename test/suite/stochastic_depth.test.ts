import { env, type PretrainedOptions, Tensor, ViTMSNForImageClassification } from "vit-msn";
import {
  type Batch,
  compute_gradients,
  Trainer,
  TrainingArguments,
  type TrainingOptions,
} from "vit-msn/training";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { raw_tensors, safetensors_of, values_of } from "../support/checkpoints.ts";
import { temporary_directory } from "../support/directories.ts";
import { open_device } from "../support/gpu_devices.ts";
import { TRAINABLE_CONFIG } from "../support/models.ts";
import { max_difference } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

/** Two layers: the first has a rate of 0, the last the whole rate. */
const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_labels: 3,
  initializer_range: 0.3,
};
const RATE = 0.4;
/** The layers that end the last layer's branches. */
const ENDS = ["vit.encoder.layer.1.attention.output.dense.", "vit.encoder.layer.1.output.dense."] as const;

const pixel_values = new Tensor(
  "float32",
  Float32Array.from({ length: 192 }, (_, i) => Math.sin(i * 1.7)),
  [1, 3, 8, 8],
);
const batch: Batch = { pixel_values, labels: new Tensor("int32", [1], [1]) };

async function files_of(model: ViTMSNForImageClassification): Promise<Record<string, Uint8Array>> {
  const directory = await temporary_directory();
  await model.save_pretrained(directory.target);
  const files = await directory.read_files();
  await directory.remove();
  return files;
}

const float_values = (file: Uint8Array) =>
  new Map([...raw_tensors(file)].map(([key, tensor]) => [key, values_of(tensor)]));

/** The model with both branches of the last layer multiplied by a factor. */
function scaled(files: Record<string, Uint8Array>, factors: readonly [number, number]) {
  const tensors = new Map(
    [...raw_tensors(files["model.safetensors"] as Uint8Array)].map(([key, tensor]) => {
      const branch = ENDS.findIndex((start) => key.startsWith(start));
      if (branch < 0) return [key, tensor];
      const values = values_of(tensor).map((x) => x * (factors[branch] as number));
      return [key, { ...tensor, bytes: new Uint8Array(values.buffer) }];
    }),
  );
  return { ...files, "model.safetensors": safetensors_of(tensors) };
}

const warn = env.warn;
beforeAll(() => {
  env.warn = () => {};
});
afterAll(() => {
  env.warn = warn;
});

/** One step of plain gradient descent with a rate of 1 from the same weights. */
async function step(files: Record<string, Uint8Array>, args: TrainingOptions, options: PretrainedOptions) {
  const model = await ViTMSNForImageClassification.from_pretrained(files, options);
  const before = float_values(files["model.safetensors"] as Uint8Array);
  const trainer = new Trainer({
    model,
    train_dataset: [{ pixel_values: pixel_values.reshape(3, 8, 8), label: 1 }],
    data_collator: async () => batch,
    args: {
      max_steps: 1,
      optim: "sgd",
      momentum: 0,
      learning_rate: 1,
      max_grad_norm: 0,
      logging_steps: 1,
      ...args,
    },
  });
  await trainer.train();
  const after = float_values((await files_of(model))["model.safetensors"] as Uint8Array);
  await model.dispose();
  const gradients = new Map(
    [...after].map(([key, values]) => [key, values.map((x, i) => (before.get(key)?.[i] as number) - x)]),
  );
  return { loss: trainer.state.log_history[0]?.loss as number, gradients };
}

describe.each(no_webgpu === undefined ? ["wasm", "webgpu"] : ["wasm"])("on %s", (device) => {
  const options: PretrainedOptions = {};
  beforeAll(async () => {
    if (device === "webgpu") options.device = await open_device();
  });

  test("an image skips a branch or has it divided by the share that stays, with that model's gradients", async () => {
    const fresh = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3 });
    const files = await files_of(fresh);
    await fresh.dispose();
    const wanted = [];
    const factors = [0, 1 / (1 - RATE)] as const;
    for (const attention of factors) {
      for (const mlp of factors) {
        const model = await ViTMSNForImageClassification.from_pretrained(scaled(files, [attention, mlp]));
        wanted.push({
          branches: [attention, mlp],
          ...(await compute_gradients(model, { ...batch, labels: [1] })),
        });
        await model.dispose();
      }
    }
    const seen = new Set<number>();
    for (let seed = 0; seed < (device === "wasm" ? 24 : 3); seed++) {
      const { loss, gradients } = await step(files, { seed, drop_path_rate: RATE }, options);
      const which = wanted.findIndex((one) => Math.abs(one.loss - loss) < 1e-5);
      expect(which, `loss ${loss}`).toBeGreaterThanOrEqual(0);
      seen.add(which);
      const { branches, gradients: expected } = wanted[which] as (typeof wanted)[number];
      for (const [key, { data }] of expected) {
        const name = key.startsWith("classifier.") ? key : `vit.${key}`;
        const branch = ENDS.findIndex((start) => name.startsWith(start));
        const factor = branch < 0 ? 1 : (branches[branch] as number);
        const found = gradients.get(name) as Float32Array;
        const reference = data.map((x) => x * factor);
        const scale = reference.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
        expect(max_difference(found, reference) / scale, key).toBeLessThan(1e-5);
      }
    }
    expect(seen.size).toBe(device === "wasm" ? 4 : 3);
  });
});

test("recomputed layers skip the same branches, and images of a batch different ones", async () => {
  const run = async (args: TrainingOptions) => {
    const model = await ViTMSNForImageClassification.from_config(
      { ...CONFIG, num_hidden_layers: 4 },
      { seed: 3 },
    );
    const image = pixel_values.reshape(3, 8, 8);
    const logits: Float32Array[] = [];
    const trainer = new Trainer({
      model,
      train_dataset: Array.from({ length: 8 }, () => ({ pixel_values: image, label: 1 })),
      compute_loss: ({ logits: { data, dims } }) => {
        logits.push(data);
        return { loss: 0, gradient: new Tensor("float32", data, dims) };
      },
      args: { max_steps: 2, drop_path_rate: 0.5, optim: "sgd", learning_rate: 0.01, ...args },
    });
    await trainer.train();
    const { "model.safetensors": weights } = await files_of(model);
    await model.dispose();
    return { weights, logits };
  };
  const first = await run({});
  expect(await run({})).toEqual(first);
  expect(await run({ gradient_checkpointing: true })).toEqual(first);
  expect((await run({ seed: 43, data_seed: 42 })).logits).not.toEqual(first.logits);
  const rows = Array.from({ length: 8 }, (_, i) => first.logits[0]?.slice(3 * i, 3 * i + 3).join());
  expect(new Set(rows).size).toBeGreaterThan(4);
});

test("a rate of 1 is refused", () => {
  expect(() => new TrainingArguments({ drop_path_rate: 1 })).toThrow(/drop_path_rate must be below 1/);
});
