import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import type { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import type { ViTMSNConfig } from "../../model/configuration_vit_msn.ts";
import { check_options } from "../../options.ts";
import { Tensor } from "../../tensor.ts";
import { COLLATOR_RULES } from "../option_rules.ts";
import type { Random } from "../random.ts";
import { type Example, type ExampleLabel, name_of, read_image } from "./dataset.ts";
import type { ImageTransform } from "./transforms.ts";

/** The inputs of one forward pass. */
export interface Batch {
  /** float32 [batch, channels, height, width]. */
  pixel_values: Tensor;
  /** As in the model's forward pass: accept images of another size than config.image_size; default false. */
  interpolate_pos_encoding?: boolean;
  /** Class indices [batch], or targets; undefined if the examples have none. */
  labels?: Tensor;
}

/** An example with its position and random numbers. */
export interface DrawnExample {
  example: Example;
  /** Its index in the data. */
  index: number;
  /** Specific to the example and the epoch. */
  random: Random;
}

export interface CollateContext {
  /** Whether the batch is for training, where images are augmented. */
  is_training: boolean;
  /** Specific to the batch and the epoch. */
  random: Random;
  signal?: AbortSignal | undefined;
}

/** Makes a batch; undefined if none of the examples can be used. */
export type Collator<Batch> = (
  examples: readonly DrawnExample[],
  context: CollateContext,
) => Promise<Batch | undefined>;

/** Makes the batches of a Trainer. */
export type DataCollator = Collator<Batch>;

export interface ImageCollatorOptions {
  config: ViTMSNConfig;
  /** Required if examples hold images. */
  processor?: ViTImageProcessor | undefined;
  train_transform?: ImageTransform | undefined;
  eval_transform?: ImageTransform | undefined;
  /**
   * What to do with an image that can't be read: throw an "error" (default), or "skip" it with a warning that
   * names it.
   */
  unreadable_images?: "error" | "skip";
}

/**
 * Reads and transforms images; the processor turns them into pixel_values, the config maps labels to indices.
 * @param warned collects the names of skipped images.
 */
export function image_collator(options: ImageCollatorOptions, warned = new Set<string>()): DataCollator {
  check_options("image_collator", options, COLLATOR_RULES);
  return async (drawn, context) => {
    const pixels: Tensor[] = [];
    const labels: (ExampleLabel | undefined)[] = [];
    for (const one of drawn) {
      try {
        pixels.push(await pixel_values_of(one, options, context));
        labels.push(one.example.label);
      } catch (error) {
        skip_or_throw(error, name_of(one.example, one.index), options, warned);
      }
    }
    if (pixels.length === 0) return undefined;
    const target = label_tensor(labels, drawn, options.config);
    return { pixel_values: stack(pixels, drawn), ...(target && { labels: target }) };
  };
}

async function pixel_values_of(
  { example, index, random }: DrawnExample,
  options: ImageCollatorOptions,
  { is_training, signal }: CollateContext,
): Promise<Tensor> {
  if (example.pixel_values !== undefined) return example.pixel_values;
  if (example.image === undefined) {
    throw invalid(`Example ${index} of the data has neither image nor pixel_values.`, index);
  }
  if (options.processor === undefined) {
    throw invalid(
      "The data holds images, so an image processor is needed: pass image_processor to the Trainer, or pixel_values as data.",
      index,
    );
  }
  const image = await read_image(example.image, { signal });
  const transform = is_training ? options.train_transform : options.eval_transform;
  const { pixel_values } = await options.processor.preprocess(transform?.(image, random) ?? image, {
    signal,
  });
  return pixel_values.reshape(...pixel_values.dims.slice(1));
}

const UNREADABLE = ["INVALID_IMAGE", "NOT_FOUND", "ACCESS_DENIED", "IO", "NETWORK", "OFFLINE"];

/**
 * @internal Reports an image that can't be read: as an error, or once as a warning. Rethrows other errors.
 */
export function skip_or_throw(
  error: unknown,
  name: string,
  { unreadable_images = "error" }: Pick<ImageCollatorOptions, "unreadable_images">,
  warned: Set<string>,
): void {
  if (!(error instanceof VitMsnError) || !UNREADABLE.includes(error.code)) throw error;
  if (unreadable_images === "error") {
    throw new VitMsnError(
      error.code,
      `${name} can't be used for training: ${error.message} Remove it, or set unreadable_images to "skip".`,
      { cause: error, details: { ...error.details, image: name } },
    );
  }
  if (!warned.has(name)) env.warn(`Skipped ${name}: ${error.message}`);
  warned.add(name);
}

/** Stacks the images into one tensor. */
function stack(pixels: readonly Tensor[], drawn: readonly DrawnExample[]): Tensor {
  const [first] = pixels as [Tensor, ...Tensor[]];
  const data = new Float32Array(first.size * pixels.length);
  pixels.forEach((image, i) => {
    if (image.type !== "float32" || image.dims.length !== 3 || image.dims.join() !== first.dims.join()) {
      throw invalid(
        `The images of a batch must be float32 [channels, height, width] of the same size; one is ${first.type} [${first.dims.join(", ")}], ` +
          `another ${image.type} [${image.dims.join(", ")}].`,
        drawn[i]?.index,
      );
    }
    data.set(image.data as Float32Array, i * first.size);
  });
  return new Tensor("float32", data, [pixels.length, ...first.dims]);
}

/**
 * Class indices, or float targets, depending on the model's problem type; undefined if no example has a
 * label.
 */
function label_tensor(
  labels: readonly (ExampleLabel | undefined)[],
  drawn: readonly DrawnExample[],
  config: ViTMSNConfig,
): Tensor | undefined {
  if (labels.every((label) => label === undefined)) return undefined;
  const missing = labels.indexOf(undefined);
  if (missing >= 0)
    throw invalid(`Example ${drawn[missing]?.index} of the data has no label.`, drawn[missing]?.index);
  if (labels.some(Array.isArray)) {
    const rows = labels as readonly (readonly number[])[];
    const data = rows.flatMap((row) => (Array.isArray(row) ? row : [row]));
    return new Tensor("float32", data, [rows.length, data.length / rows.length]);
  }
  const numbers = labels.map((label, i) =>
    typeof label === "string" ? class_index(label, config, drawn[i]) : label,
  );
  const is_regression = config.problem_type === "regression" || config.num_labels === 1;
  return new Tensor(is_regression ? "float32" : "int32", numbers as number[], [numbers.length]);
}

function class_index(label: string, { label2id }: ViTMSNConfig, one: DrawnExample | undefined): number {
  const index = Object.hasOwn(label2id, label) ? label2id[label] : undefined;
  if (index !== undefined) return index;
  throw invalid(
    `The model has no class ${JSON.stringify(label)}; its classes are ${Object.keys(label2id).slice(0, 20).join(", ")}. ` +
      "Load it with config: { id2label } for your classes and ignore_mismatched_sizes: true, which gives it a new classifier.",
    one?.index,
  );
}

function invalid(message: string, index: number | undefined): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: { argument: "train_dataset", index } });
}
