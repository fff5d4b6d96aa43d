import { VitMsnError } from "../../errors.ts";
import { type ImageInput, RawImage, type ReadOptions } from "../../image/raw_image.ts";
import { is_a } from "../../is_a.ts";
import type { ProblemType } from "../../model/configuration_vit_msn.ts";
import { Tensor } from "../../tensor.ts";

/**
 * A label: a class by name or index (-100: ignored by the loss); for multi-label classification or regression
 * of several values, a number for each of the model's labels; for regression of one value, a number.
 */
export type ExampleLabel = string | number | readonly number[];

/** An image that is read when it is needed, such as a member of an archive. */
export interface LazyImage {
  /** For messages. */
  readonly name: string;
  read(): Promise<ImageInput>;
}

/** One labelled image, in any form that RawImage.read accepts, or as the processor's output. */
export interface Example {
  image?: ImageInput | LazyImage;
  /** float32 [channels, height, width], instead of `image`. */
  pixel_values?: Tensor;
  /** Optional for predictions. */
  label?: ExampleLabel;
}

/** Examples by index, each read on demand. */
export interface Dataset {
  readonly length: number;
  get(index: number): Example | Promise<Example>;
  /** The names of all classes that labels use, if known. */
  readonly classes?: readonly string[] | undefined;
  /** What the labels are, if known: one class for each image, several, or numbers. */
  readonly problem_type?: ProblemType | undefined;
}

/**
 * Whole tensors: pixel_values [N, channels, height, width] and a label for each. float32 tensors are the
 * processor's output; uint8 tensors are images, grey or RGB.
 */
export interface TensorData {
  pixel_values: Tensor;
  labels?: Tensor | readonly ExampleLabel[];
}

/** A sequence of examples, used in order; a function returns the sequence of each epoch. */
export type ExampleStream = AsyncIterable<Example> | (() => AsyncIterable<Example>);

/** The forms of data that a Trainer accepts. */
export type TrainingData = readonly Example[] | Dataset | TensorData | ExampleStream;

/** Data as the loader reads it: by index, or as a stream. */
export type OpenedData =
  | { readonly dataset: Dataset; readonly stream?: undefined }
  | { readonly dataset?: undefined; readonly stream: () => AsyncIterable<Example> };

/** @throws VitMsnError INVALID_ARGUMENT for anything but data. */
export function open_data(data: TrainingData, what: string): OpenedData {
  if (Array.isArray(data)) {
    const examples = data as readonly Example[];
    return { dataset: { length: examples.length, get: (index) => examples[index] as Example } };
  }
  if (typeof data === "function") return { stream: data };
  if (typeof data === "object" && data !== null) {
    if ("get" in data && "length" in data) return { dataset: data };
    if ("pixel_values" in data) return { dataset: tensor_dataset(data, what) };
    if (Symbol.asyncIterator in data) return { stream: () => data };
  }
  throw invalid(
    `${what} must be a list of { image, label }, an ImageFolder or other { length, get }, tensors { pixel_values, labels }, ` +
      "or an async iterable of { image, label }.",
    what,
  );
}

function tensor_dataset({ pixel_values, labels }: TensorData, what: string): Dataset {
  const is_tensor = pixel_values instanceof Tensor && pixel_values.dims.length === 4;
  const example_of = is_tensor ? example_reader(pixel_values) : undefined;
  if (example_of === undefined) {
    throw invalid(
      `${what}.pixel_values must be a Tensor [N, channels, height, width]: float32, or uint8 of 1 or 3 channels.`,
      what,
    );
  }
  const length = pixel_values.dims[0] as number;
  const label_of = labels === undefined ? () => undefined : label_reader(labels, length, what);
  return { length, get: (index) => ({ ...example_of(index), label: label_of(index) }) };
}

/** Reads each image of a tensor; undefined for a tensor of another kind. */
function example_reader({ type, dims, data }: Tensor): ((index: number) => Example) | undefined {
  const [channels, height, width] = dims.slice(1) as [number, number, number];
  const size = channels * height * width;
  if (type === "float32") {
    const values = data as Float32Array;
    return (index) => ({
      pixel_values: new Tensor("float32", values.subarray(index * size, (index + 1) * size), dims.slice(1)),
    });
  }
  if (type !== "uint8" || (channels !== 1 && channels !== 3)) return undefined;
  const bytes = data as Uint8Array;
  return (index) => {
    const planes = bytes.subarray(index * size, (index + 1) * size);
    return { image: new RawImage(channels === 1 ? planes : interleave(planes), width, height, channels) };
  };
}

/** Interleaves three planes into pixels. */
function interleave(planes: Uint8Array): Uint8Array {
  const plane = planes.length / 3;
  const pixels = new Uint8Array(planes.length);
  for (let i = 0, to = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) pixels[to++] = planes[c * plane + i] as number;
  }
  return pixels;
}

function label_reader(
  labels: NonNullable<TensorData["labels"]>,
  length: number,
  what: string,
): (index: number) => ExampleLabel {
  const count = labels instanceof Tensor ? labels.dims[0] : labels.length;
  if (count !== length) {
    throw invalid(`${what} has ${length} images but ${count} labels; it needs one label per image.`, what);
  }
  if (!(labels instanceof Tensor)) return (index) => labels[index] as ExampleLabel;
  const width = length === 0 ? 1 : labels.size / length;
  if (labels.dims.length === 1) return (index) => Number(labels.data[index]);
  return (index) => Array.from(labels.data.slice(index * width, (index + 1) * width), Number);
}

/** Reads an example's image. */
export async function read_image(
  image: NonNullable<Example["image"]>,
  options: ReadOptions,
): Promise<RawImage> {
  return RawImage.read(is_lazy(image) ? await image.read() : image, options);
}

function is_lazy(image: NonNullable<Example["image"]>): image is LazyImage {
  return typeof (image as Partial<LazyImage>).read === "function";
}

/** An image's name, for messages. */
export function name_of({ image }: Example, index: number): string {
  if (typeof image === "string" || is_a(image, "URL")) return String(image).slice(0, 300);
  const name = (image as Partial<File> | undefined)?.name;
  return typeof name === "string" && name !== "" ? name : `image ${index}`;
}

function invalid(message: string, argument: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: { argument } });
}
