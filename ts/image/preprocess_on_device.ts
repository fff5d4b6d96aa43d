import { DeviceTensor } from "../device_tensor.ts";
import type { DrawnImage, Engine, ImageEngine, ImagePlan, TensorHandle } from "../engine/engine.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { type_name } from "../is_a.ts";
import { type Drawable, drawn_size, is_drawable } from "./drawable.ts";
import type { ImageProcessorSettings } from "./image_processor_config.ts";
import { type Area, check_output, check_same_shape, processed_size, value_tables } from "./processed_size.ts";
import { type ImageInput, RawImage, type ReadOptions } from "./raw_image.ts";
import { resampling } from "./resampling.ts";
import { resamples_rows_first } from "./resize.ts";

/** RGB; images of other channels are prepared on the CPU. */
const CHANNELS = 3;

/** The images of one call in one tensor on the device. */
interface Prepared {
  pixels: TensorHandle;
  /** [height, width] of each image as it was read. */
  original_sizes: [number, number][];
  /** The size of each in the tensor. */
  area: Area;
}

/**
 * Prepares images on an engine's device, with exactly the results of the CPU. Elements of a page are copied there without being
 * read back; the colours of their partly transparent pixels may differ by rounding.
 *
 * @returns undefined where the device can't hold an image or the batch.
 * @throws VitMsnError as ViTImageProcessor.preprocess.
 */
export async function preprocess_on_device(
  engine: Engine,
  inputs: readonly ImageInput[],
  settings: ImageProcessorSettings,
  options: ReadOptions,
) {
  const { images } = engine;
  if (images === undefined || engine.is_lost || !settings.do_convert_rgb) return undefined;
  const prepared = await prepare(engine, images, inputs, settings, options);
  if (prepared === undefined) return undefined;
  const { pixels, original_sizes, area } = prepared;
  const { height, width } = area;
  return {
    pixel_values: new DeviceTensor(engine, pixels, [inputs.length, CHANNELS, height, width]),
    original_sizes,
    reshaped_input_sizes: original_sizes.map((): [number, number] => [height, width]),
  };
}

async function prepare(
  engine: Engine,
  images: ImageEngine,
  inputs: readonly ImageInput[],
  settings: ImageProcessorSettings,
  options: ReadOptions,
): Promise<Prepared | undefined> {
  const values = Float32Array.from(value_tables(settings, CHANNELS).flatMap((table) => [...table]));
  const original_sizes: [number, number][] = [];
  let [pixels, area]: [TensorHandle | undefined, Area | undefined] = [undefined, undefined];
  let is_whole = false;
  try {
    for (const [index, input] of inputs.entries()) {
      throw_if_aborted(options.signal, "Preprocessing");
      const image = await source_of(input, images, options);
      const { cropped, plan } = plan_of(image, settings, index, values);
      const { height, width } = cropped;
      const bytes = 4 * inputs.length * CHANNELS * height * width;
      if (Math.max(bytes, bytes_of(image)) > images.max_bytes) return undefined;
      if (area) check_same_shape([CHANNELS, area.height, area.width], [CHANNELS, height, width], index);
      area ??= cropped;
      pixels ??= images.pixels([inputs.length, CHANNELS, height, width]);
      put(images, image, plan, pixels, index);
      original_sizes.push([image.height, image.width]);
    }
    is_whole = true;
  } finally {
    if (!is_whole && pixels !== undefined) engine.free(pixels);
  }
  return { pixels: pixels as TensorHandle, original_sizes, area: area as Area };
}

/** Elements of a page aren't read where the device takes images of their size. */
async function source_of(
  input: ImageInput,
  { max_side }: ImageEngine,
  options: ReadOptions,
): Promise<RawImage | DrawnImage> {
  if (!is_drawable(input)) return RawImage.read(input, options);
  const { width, height } = drawn_size(input, `The ${type_name(input)}`);
  return Math.max(width, height) <= max_side ? { source: input, width, height } : RawImage.fromCanvas(input);
}

/** The most bytes that an image takes on the device: as it is read, or between the two passes. */
function bytes_of(image: RawImage | DrawnImage): number {
  // Rows of a page's elements are padded to 256 bytes.
  return 4 * (image.width + 64) * image.height;
}

function put(
  images: ImageEngine,
  image: RawImage | DrawnImage,
  plan: ImagePlan,
  pixels: TensorHandle,
  index: number,
): void {
  try {
    images.put(image, plan, pixels, index);
  } catch (cause) {
    if (cause instanceof VitMsnError || !("source" in image)) throw cause;
    // Browsers refuse elements that they can't share with the device, such as frames of a software-decoded video. Those
    // can be read and uploaded; an element that mustn't be read either throws an error with its name.
    images.put(RawImage.fromCanvas(image.source as Drawable), plan, pixels, index);
  }
}

function plan_of(
  image: Area,
  settings: ImageProcessorSettings,
  index: number,
  values: Float32Array,
): { cropped: Area; plan: ImagePlan } {
  const { resample, do_center_crop, crop_size } = settings;
  const resized = processed_size(image, settings, index);
  const cropped = do_center_crop ? crop_size : resized;
  check_output(cropped.height, cropped.width, image, index);
  const plan = {
    columns: resampling(image.width, resized.width, resample),
    rows: resampling(image.height, resized.height, resample),
    rows_first: resamples_rows_first(image, resized.width, resized.height),
    left: Math.floor((resized.width - cropped.width) / 2),
    top: Math.floor((resized.height - cropped.height) / 2),
    values,
  };
  return { cropped, plan };
}
