import { Callable } from "../callable.ts";
import type { Engine } from "../engine/engine.ts";
import { Pacer } from "../engine/pacer.ts";
import { invalid_argument as invalid, VitMsnError } from "../errors.ts";
import { read_json, to_json_text } from "../loading/json.ts";
import { check_pretrained } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions, ModelSource, PretrainedSource } from "../loading/types.ts";
import { on_demand } from "../on_demand.ts";
import { check_options, type Rules, record, unknown_option } from "../options.ts";
import { Tensor } from "../tensor.ts";
import {
  type ImageProcessorOptions,
  type ImageProcessorSettings,
  PROCESSOR_FILE,
  parse_settings,
  SETTINGS,
} from "./image_processor_config.ts";
import type { ProcessorSize } from "./output_size.ts";
import { check_output, check_same_shape, processed_size, value_tables } from "./processed_size.ts";
import { from_pixels, type ImageInput, RawImage, READ_RULES, type ReadOptions } from "./raw_image.ts";
import { resize_steps } from "./resize.ts";

export type { ImageProcessorOptions, ImageProcessorSettings, ProcessorSize };

export interface ImageProcessorOutput {
  /** [batch, channels, height, width], ready for the model; a DeviceTensor where that was asked for and can be. */
  pixel_values: Tensor<"float32">;
  /** [height, width] of each image as it was read. */
  original_sizes: [number, number][];
  /** [height, width] of each image in pixel_values. */
  reshaped_input_sizes: [number, number][];
}

/** One image or a list, in any form that RawImage.read takes. */
export type ImageInputs = ImageInput | readonly ImageInput[];

/** Overrides of the processor's settings for one call, and how to read the images. */
export interface PreprocessOptions extends ImageProcessorOptions, ReadOptions {
  /**
   * A model: where it runs on WebGPU in this thread, images are prepared there, with the same results, and pixel_values is
   * a DeviceTensor that never leaves the GPU. Elsewhere, and for settings and images that the GPU doesn't process (other than
   * RGB, larger than its buffers), it is a Tensor. Default: none.
   */
  device?: HasEngine | undefined;
}

/** What runs on an engine: a model. */
export interface HasEngine {
  /** @internal */
  readonly engine: Engine;
}

/** All of a preprocessor_config.json, recognised by its type. */
export type ProcessorFile = Readonly<Record<string, unknown>> &
  ({ image_processor_type: string } | { feature_extractor_type: string });

function has_type(config: object): boolean {
  return "image_processor_type" in config || "feature_extractor_type" in config;
}

/** For messages. */
const CALL = "The image processor's call";

const DEVICE_RULES: Rules = {
  device: ["a model", (value) => typeof (value as HasEngine | null)?.engine?.tensor === "function"],
};

export interface ViTImageProcessor extends ImageProcessorSettings {
  /** The same as preprocess. */
  (images: ImageInputs, options?: PreprocessOptions): Promise<ImageProcessorOutput>;
}

/**
 * Prepares images as a model's input, like the reference's ViTImageProcessor (its Pillow backend, bit for bit):
 * RGB, resize on 8 bits, optional centre crop, ×rescale_factor, (x − image_mean) / image_std.
 *
 * Call it: `const { pixel_values } = await processor(image)`. Its settings are plain properties.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor gives a function and assigns every setting.
export class ViTImageProcessor extends Callable<
  [images: ImageInputs, options?: PreprocessOptions],
  Promise<ImageProcessorOutput>
> {
  /** Set explicitly, since minifiers rename classes. */
  static override readonly name: string = "ViTImageProcessor";
  readonly #other_fields: Record<string, unknown>;

  /**
   * @param config the fields of preprocessor_config.json; missing ones get the reference's defaults. An unknown field
   *   is an error, unless `config` has an image_processor_type, like a whole file: then it is stored and saved again.
   * @param where for messages: the file that config comes from.
   * @throws VitMsnError INVALID_CONFIG that names the file and key.
   */
  constructor(config: ImageProcessorOptions | ProcessorFile = {}, where?: string) {
    super();
    check_options("ViTImageProcessor", { config }, { config: record });
    const settings = parse_settings({ ...config }, where ?? "ViTImageProcessor", "INVALID_CONFIG");
    const others = Object.entries(config).filter(([key]) => !Object.hasOwn(settings, key));
    const is_file = where !== undefined || has_type(config);
    if (!is_file && others[0]) throw unknown_option("ViTImageProcessor", others[0][0], Object.keys(settings));
    this.#other_fields = Object.fromEntries(others);
    Object.assign(this, settings);
  }

  /**
   * Reads preprocessor_config.json (also the legacy form, with feature_extractor_type and an integer size), or
   * processor_config.json's "image_processor".
   *
   * @throws VitMsnError NOT_FOUND, INVALID_CONFIG, NETWORK, OFFLINE, ABORTED.
   */
  static async from_pretrained(
    source: PretrainedSource,
    options: LoadOptions = {},
  ): Promise<ViTImageProcessor> {
    check_pretrained(options);
    const opened = await open_source(source, options);
    const { config, where } = await read_settings(opened);
    return new ViTImageProcessor(config, where);
  }

  /** The same as preprocess. */
  override call(images: ImageInputs, options?: PreprocessOptions): Promise<ImageProcessorOutput> {
    return this.preprocess(images, options);
  }

  override _call(images: ImageInputs, options?: PreprocessOptions): Promise<ImageProcessorOutput> {
    return this.preprocess(images, options);
  }

  /**
   * @param options overrides of the settings for this call; `signal` aborts between images; with `device` the result stays on a
   *   model's GPU.
   * @throws VitMsnError INVALID_ARGUMENT, INVALID_IMAGE and others of RawImage.read, OUT_OF_MEMORY, ABORTED.
   */
  async preprocess(images: ImageInputs, options: PreprocessOptions = {}): Promise<ImageProcessorOutput> {
    check_options(CALL, options, READ_RULES, DEVICE_RULES, SETTINGS);
    const { signal, max_pixels, headers, admit, device, ...overrides } = options;
    const reading = { signal, max_pixels, headers, admit };
    const settings = this.#override(overrides);
    const list: readonly ImageInput[] = Array.isArray(images) ? images : [images];
    if (list.length === 0) throw invalid("The list of images is empty; pass at least one.");
    if (device !== undefined) {
      const output = await preprocess_on(device.engine, list, settings, reading);
      if (output) return output;
    }
    const batch = new Batch(settings, list.length);
    const pacer = new Pacer(signal, "Preprocessing");
    for (const [index, input] of list.entries()) {
      await pacer.step();
      const image = await RawImage.read(input, reading);
      batch.add(image, await transform(image, settings, index, pacer), index);
    }
    return batch.finish();
  }

  /** The fields of preprocessor_config.json, unknown ones included. */
  to_dict(): Record<string, unknown> {
    const type = has_type(this.#other_fields) ? {} : { image_processor_type: "ViTImageProcessor" };
    // A processor of transformers has its backend by its class, and refuses it as a setting.
    return { ...type, ...this.#other_fields, ...this.#settings(), backend: undefined };
  }

  to_json_string(): string {
    return to_json_text(this.to_dict());
  }

  /**
   * Writes preprocessor_config.json, which from_pretrained and Hugging Face transformers open.
   * @param directory a folder's path; in browsers a FileSystemDirectoryHandle.
   */
  async save_pretrained(directory: SaveDirectory): Promise<void> {
    const { save_files } = await on_demand("writing of files", () => import("#save"));
    await save_files(directory, { [PROCESSOR_FILE]: this.to_json_string() });
  }

  #override(overrides: ImageProcessorOptions): ImageProcessorSettings {
    const given = Object.entries(overrides).filter(([, value]) => value !== undefined && value !== null);
    const merged = { ...this.#settings(), ...Object.fromEntries(given) };
    return parse_settings(merged, CALL, "INVALID_ARGUMENT");
  }

  #settings(): ImageProcessorSettings {
    const entries = Object.keys(SETTINGS).map((name) => [name, this[name as keyof ImageProcessorSettings]]);
    return Object.fromEntries(entries) as ImageProcessorSettings;
  }
}

async function read_settings(
  source: ModelSource,
): Promise<{ config: Record<string, unknown>; where: string }> {
  const { config, where } = await read_config(source);
  const type = config.image_processor_type ?? config.feature_extractor_type ?? "ViTImageProcessor";
  const is_own = /^ViT(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?$/.test(String(type));
  if (is_own && !config.do_pad) return { config, where };
  const { as_vit_settings } = await on_demand(
    "other image processors",
    () => import("./processor_families.ts"),
  );
  return { config: as_vit_settings(config, where), where };
}

async function read_config(source: ModelSource): Promise<{ config: Record<string, unknown>; where: string }> {
  const config = await read_json(source, PROCESSOR_FILE);
  if (config !== undefined) return { config, where: `${source.name}: ${PROCESSOR_FILE}` };
  const { read_combined_processor } = await on_demand(
    "reader of settings",
    () => import("./combined_processor.ts"),
  );
  return read_combined_processor(source, PROCESSOR_FILE);
}

/** preprocess_on_device, loaded where the engine has such a device. */
async function preprocess_on(
  engine: Engine,
  ...rest: [readonly ImageInput[], ImageProcessorSettings, ReadOptions]
) {
  const [, { backend }] = rest;
  if (engine.images === undefined || backend !== "pil") return undefined;
  const { preprocess_on_device } = await on_demand(
    "image processor for WebGPU",
    () => import("./preprocess_on_device.ts"),
  );
  return preprocess_on_device(engine, ...rest);
}

/** The images of one call, processed one by one into one tensor. */
class Batch {
  readonly #settings: ImageProcessorSettings;
  readonly #count: number;
  readonly #original_sizes: [number, number][] = [];
  /** The first image's [channels, height, width], which all others must have. */
  #shape: [number, number, number] | undefined;
  #values = new Float32Array(0);
  #tables: Float32Array[] = [];

  constructor(settings: ImageProcessorSettings, count: number) {
    this.#settings = settings;
    this.#count = count;
  }

  add(image: RawImage, processed: RawImage, index: number): void {
    const shape: [number, number, number] = [processed.channels, processed.height, processed.width];
    if (this.#shape === undefined) this.#begin(shape);
    else check_same_shape(this.#shape, shape, index);
    this.#original_sizes.push([image.height, image.width]);
    const plane = processed.height * processed.width;
    for (let c = 0; c < processed.channels; c++) {
      const table = this.#tables[c] as Float32Array;
      const start = (index * processed.channels + c) * plane;
      for (let i = 0, at = c; i < plane; i++, at += processed.channels) {
        this.#values[start + i] = table[processed.data[at] as number] as number;
      }
    }
  }

  finish(): ImageProcessorOutput {
    const [channels, height, width] = this.#shape as [number, number, number];
    return {
      pixel_values: new Tensor("float32", this.#values, [this.#count, channels, height, width]),
      original_sizes: this.#original_sizes,
      reshaped_input_sizes: this.#original_sizes.map(() => [height, width]),
    };
  }

  #begin(shape: [number, number, number]): void {
    this.#shape = shape;
    this.#tables = value_tables(this.#settings, shape[0]);
    const length = this.#count * shape[0] * shape[1] * shape[2];
    try {
      this.#values = new Float32Array(length);
    } catch (cause) {
      throw new VitMsnError(
        "OUT_OF_MEMORY",
        `${this.#count} images of ${shape[1]}×${shape[2]} pixels don't fit in memory; pass fewer at once.`,
        { cause },
      );
    }
  }
}

/** Channels, resize and crop of one image: every step on 8-bit values. Pauses by the pacer, also within a large image. */
export async function transform(
  image: RawImage,
  settings: ImageProcessorSettings,
  index: number,
  pacer: Pacer,
): Promise<RawImage> {
  let result = settings.do_convert_rgb ? image.rgb() : image;
  if (settings.do_resize) {
    const { width, height } = processed_size(result, settings, index);
    const { backend, resample } = settings;
    let steps_of = resize_steps;
    if (backend !== "pil") {
      const torchvision = await on_demand("torchvision's resize", () => import("./torchvision_resize.ts"));
      steps_of = torchvision.steps_of(backend);
    }
    const steps = steps_of(result, width, height, resample);
    let step = steps.next();
    for (; !step.done; step = steps.next()) await pacer.step();
    result = from_pixels(step.value);
  }
  if (settings.do_center_crop) {
    result = result.center_crop(settings.crop_size.width, settings.crop_size.height);
  }
  check_output(result.height, result.width, image, index);
  return result;
}
