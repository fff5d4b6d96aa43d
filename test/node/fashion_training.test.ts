import { readFile } from "node:fs/promises";
import { Tensor, type ViTMSNConfigInit, ViTMSNForImageClassification } from "vit-msn";
import { type Example, Trainer } from "vit-msn/training";
import { expect, test } from "vitest";
import { normal_values } from "../../ts/model/random.ts";
import { read_tensors } from "../support/tensors.ts";

/** As test/reference/make_fashion_training.py. */
const [STEPS, BATCH, STRIDE, SIDE] = [30, 16, 383, 28];

/** How far a step's loss may be from the reference's, relatively. The most measured is 4e-7 in thirty steps. */
const TOLERANCE = 1e-5;

test("the bundled model's architecture from scratch: each step's loss is the reference's", async () => {
  const config = JSON.parse(await readFile("models/fashion/config.json", "utf8")) as ViTMSNConfigInit;
  const reference = JSON.parse(await readFile("test/fixtures/training/fashion.json", "utf8"));
  const tensors = await read_tensors("models/fashion/test1000.safetensors");
  const pixels = tensors.get("pictures")?.data as Uint8Array;
  const labels = Array.from(tensors.get("labels")?.data as Int32Array, Number);
  async function* examples(): AsyncGenerator<Example> {
    for (let i = 0; i < STEPS * BATCH; i++) {
      const at = (i * STRIDE) % labels.length;
      const is_mirrored = Math.floor(i / BATCH) % 3 === 0;
      yield { pixel_values: image(pixels, at, is_mirrored), label: labels[at] as number };
    }
  }
  const model = await ViTMSNForImageClassification.from_config(config, { seed: 0 });
  // The recipe's positions and CLS don't start at zero.
  const { engine, weights } = model;
  for (const key of ["embeddings.cls_token", "embeddings.position_embeddings"]) {
    const dims = engine.dims(weights.tensor(key));
    const size = dims.reduce((a, b) => a * b, 1);
    weights.replace(key, engine.tensor(normal_values(0, key, 0, size, model.config.initializer_range), dims));
  }
  const trainer = new Trainer({
    model,
    train_dataset: examples,
    args: {
      max_steps: STEPS,
      per_device_train_batch_size: BATCH,
      learning_rate: 1e-3,
      weight_decay: 0.05,
      lr_scheduler_type: "one_cycle",
      warmup_ratio: 0.1,
      logging_steps: 1,
    },
  });
  await trainer.train();
  await model.dispose();
  const steps = trainer.state.log_history.filter(({ loss }) => loss !== undefined);
  const off = steps.map(({ loss }, i) => Math.abs((loss as number) / reference.loss[i] - 1));
  console.log(
    `from scratch: loss off by at most ${Math.max(...off).toExponential(1)} of it in ${STEPS} steps`,
  );
  expect(off).toHaveLength(STEPS);
  expect(Math.max(...off)).toBeLessThan(TOLERANCE);
  for (const [i, { learning_rate }] of steps.entries())
    expect(learning_rate).toBeCloseTo(reference.learning_rate[i], 8);
});

function image(pixels: Uint8Array, at: number, is_mirrored: boolean): Tensor<"float32"> {
  const plane = Float32Array.from(
    pixels.subarray(at * SIDE * SIDE, (at + 1) * SIDE * SIDE),
    (x) => x / 127.5 - 1,
  );
  if (is_mirrored) for (let y = 0; y < SIDE; y++) plane.subarray(y * SIDE, (y + 1) * SIDE).reverse();
  return new Tensor("float32", [...plane, ...plane, ...plane], [3, SIDE, SIDE]);
}
