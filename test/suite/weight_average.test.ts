import { env, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { type Example, Trainer } from "vit-msn/training";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { raw_tensors, values_of } from "../support/checkpoints.ts";
import { type TemporaryDirectory, temporary_directory } from "../support/directories.ts";
import { saved_weights, TRAINABLE_CONFIG } from "../support/models.ts";
import { max_difference } from "../support/tensors.ts";

const CONFIG = {
  ...TRAINABLE_CONFIG,
  num_hidden_layers: 1,
  num_labels: 2,
};
const DECAY = 0.8;

const images: Example[] = Array.from({ length: 8 }, (_, i) => {
  const values = Float32Array.from({ length: 192 }, (_, p) => Math.sin(p * ((i % 2) + 1) + i));
  return { pixel_values: new Tensor("float32", values, [3, 8, 8]), label: i % 2 };
});
const ARGS = { max_steps: 6, learning_rate: 0.01, per_device_train_batch_size: 4, logging_steps: 1 } as const;

async function weights_of(model: ViTMSNForImageClassification): Promise<Map<string, Float32Array>> {
  return new Map(
    [...raw_tensors(await saved_weights(model))].map(([key, tensor]) => [key, values_of(tensor)]),
  );
}

const warn = env.warn;
beforeAll(() => {
  env.warn = () => {};
});
afterAll(() => {
  env.warn = warn;
});

test("the trained model is the average over the steps, which change as without it", async () => {
  const trajectory: Map<string, Float32Array>[] = [];
  const plain = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3 });
  trajectory.push(await weights_of(plain));
  const collect = { on_step_end: async () => void trajectory.push(await weights_of(plain)) };
  const reference = new Trainer({ model: plain, train_dataset: images, args: ARGS, callbacks: [collect] });
  await reference.train();
  const averaged = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3 });
  const evaluated: Map<string, Float32Array>[] = [];
  const trainer: Trainer = new Trainer({
    model: averaged,
    train_dataset: images,
    eval_dataset: images,
    args: { ...ARGS, ema_decay: DECAY, eval_strategy: "steps", eval_steps: 2 },
    callbacks: [{ on_prediction_step: async () => void evaluated.push(await weights_of(averaged)) }],
  });
  await trainer.train();
  const trained_losses = ({ state }: Trainer) => state.log_history.flatMap(({ loss }) => loss ?? []);
  expect(trained_losses(trainer)).toEqual(trained_losses(reference));
  const average_at = (steps: number) =>
    new Map(
      [...(trajectory[0] as Map<string, Float32Array>)].map(([key, start]) => [
        key,
        trajectory
          .slice(1, steps + 1)
          .reduce(
            (average, step) =>
              average.map((x, i) => DECAY * x + (1 - DECAY) * (step.get(key)?.[i] as number)),
            Float64Array.from(start),
          ),
      ]),
    );
  const check = (found: Map<string, Float32Array> | undefined, steps: number) => {
    for (const [key, values] of average_at(steps))
      expect(max_difference(found?.get(key) as Float32Array, values), `${key}, ${steps} steps`).toBeLessThan(
        1e-6,
      );
  };
  check(await weights_of(averaged), 6);
  expect(evaluated).toHaveLength(3);
  evaluated.forEach((found, i) => {
    check(found, 2 * (i + 1));
  });
  await Promise.all([plain.dispose(), averaged.dispose()]);
});

describe.each(["float32", "bfloat16"] as const)("%s", (dtype) => {
  test("a resumed run has the same bits; a checkpoint is the average", async () => {
    const run = async (directory: TemporaryDirectory, stop_at: number) => {
      const model = await ViTMSNForImageClassification.from_config(CONFIG, { seed: 3, dtype });
      const trainer = new Trainer({
        model,
        train_dataset: images,
        args: { ...ARGS, output_dir: directory.target, save_steps: 2, ema_decay: DECAY },
        callbacks: [
          {
            on_step_end: ({ state, control }) => {
              if (state.global_step === stop_at) control.should_training_stop = true;
            },
          },
        ],
      });
      await trainer.train({ resume_from_checkpoint: true });
      const file = await saved_weights(model);
      await model.dispose();
      return file;
    };
    const [whole, broken] = [await temporary_directory(), await temporary_directory()];
    const wanted = await run(whole, -1);
    await run(broken, 3);
    expect(await run(broken, -1)).toEqual(wanted);
    let saved: Uint8Array | undefined;
    await whole.change("checkpoint-6", "model.safetensors", (bytes) => {
      saved = bytes;
      return bytes;
    });
    expect(saved).toEqual(wanted);
    await Promise.all([whole.remove(), broken.remove()]);
  });
});
