import { type ErrorCode, show, VitMsnError } from "../errors.ts";
import { any, type Rule } from "../options.ts";
import { MAX_SIDE } from "./limits.ts";
import type { ProcessorSize } from "./output_size.ts";
import { RESAMPLE, type ResampleCode, type ResampleName, resample_code } from "./resize.ts";

export type ResizeBackend = "pil" | "torchvision";

/** What an image processor does to an image, with every default filled in. */
export interface ImageProcessorSettings {
  /** Default true. */
  do_resize: boolean;
  /** Default { height: 224, width: 224 }. */
  size: ProcessorSize;
  /** Pillow's code of the resampling filter; default 2, bilinear. */
  resample: ResampleCode;
  /**
   * Whose resize to compute, "pil" or "torchvision": those of transformers' ViTImageProcessorPil and of its ViTImageProcessor, a
   * level or two apart in some pixels; default "pil". torchvision has bilinear, bicubic and nearest only.
   */
  backend: ResizeBackend;
  /** Default false. */
  do_center_crop: boolean;
  /** Default { height: 224, width: 224 }. */
  crop_size: { height: number; width: number };
  /** Default true. */
  do_rescale: boolean;
  /** Default 1/255. */
  rescale_factor: number;
  /** Default true. */
  do_normalize: boolean;
  /** One for all channels or one each; default 0.5 for each of three. */
  image_mean: number | number[];
  /** One for all channels or one each; default 0.5 for each of three. */
  image_std: number | number[];
  /** Turn every image into RGB; default true where image_mean has three values. */
  do_convert_rgb: boolean;
}

/** The settings as preprocessor_config.json and callers may write them. */
export interface ImageProcessorOptions
  extends Partial<Omit<ImageProcessorSettings, "size" | "crop_size" | "resample">> {
  /** One side of a square, [height, width], or an object; see ProcessorSize. */
  size?: number | readonly [number, number] | ProcessorSize;
  crop_size?: number | readonly [number, number] | { height: number; width: number };
  resample?: ResampleCode | ResampleName;
}

/** The settings in the order in which they are written; parse_settings checks their values. */
export const SETTINGS: Readonly<Record<keyof ImageProcessorSettings, Rule>> = {
  do_convert_rgb: any,
  do_resize: any,
  size: any,
  resample: any,
  backend: ["pil", "torchvision"],
  do_center_crop: any,
  crop_size: any,
  do_rescale: any,
  rescale_factor: any,
  do_normalize: any,
  image_mean: any,
  image_std: any,
};

/** Next to a model's config.json. */
export const PROCESSOR_FILE = "preprocessor_config.json";
/** The most pixels of one output image: 8192 × 8192, 805 MB as float32 RGB. */
export const MAX_OUTPUT_PIXELS = 2 ** 26;

const SQUARE = { height: 224, width: 224 };
const HALF = [0.5, 0.5, 0.5];

/**
 * Checks settings from a file or a caller and fills in the reference's defaults; null counts as unset, and turns a switch off.
 *
 * @param where for messages: the file, or what the caller called.
 * @throws VitMsnError `code` that names the key, the value and what is expected.
 */
export function parse_settings(
  values: Readonly<Record<string, unknown>>,
  where: string,
  code: ErrorCode,
): ImageProcessorSettings {
  const reader = new SettingsReader(values, where, code);
  const do_resize = reader.flag("do_resize", true);
  const do_rescale = reader.flag("do_rescale", true);
  const do_normalize = reader.flag("do_normalize", true);
  const settings = {
    do_resize,
    size: reader.size("size"),
    resample: used(do_resize, () => reader.resample("resample"), RESAMPLE.bilinear),
    // Where it is none of the two, the resize reports it.
    backend: (values.backend ?? "pil") as ResizeBackend,
    do_center_crop: reader.flag("do_center_crop", false),
    crop_size: reader.crop_size("crop_size"),
    do_rescale,
    rescale_factor: used(do_rescale, () => reader.number("rescale_factor", 1 / 255), 1 / 255),
    do_normalize,
    ...used(do_normalize, () => reader.statistics(), { image_mean: [...HALF], image_std: [...HALF] }),
  };
  const is_three = typeof settings.image_mean === "number" || settings.image_mean.length === 3;
  const do_convert_rgb = reader.flag("do_convert_rgb", is_three, is_three);
  if (do_convert_rgb && settings.do_normalize && !is_three) {
    reader.fail("image_mean", "three numbers, since do_convert_rgb is true");
  }
  return { ...settings, do_convert_rgb };
}

/** A setting that nothing uses may be invalid, as in the reference: it becomes the default. */
function used<T>(is_used: boolean, read: () => T, fallback: T): T {
  try {
    return read();
  } catch (error) {
    if (is_used) throw error;
    return fallback;
  }
}

/** Whether Python treats a value as true. */
export function truthy(value: unknown): boolean {
  return typeof value === "object" && value !== null ? Object.keys(value).length > 0 : Boolean(value);
}

class SettingsReader {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #where: string;
  readonly #code: ErrorCode;

  constructor(values: Readonly<Record<string, unknown>>, where: string, code: ErrorCode) {
    this.#values = values;
    this.#where = where;
    this.#code = code;
  }

  /** A file's switches count as in Python, where null is false; a caller's must be true or false. */
  flag(key: string, fallback: boolean, if_null = false): boolean {
    const value = Object.hasOwn(this.#values, key) ? this.#values[key] : undefined;
    if (typeof value === "boolean") return value;
    if (value === undefined) return fallback;
    if (value === null) return if_null;
    return this.#code === "INVALID_CONFIG" ? truthy(value) : this.fail(key, "true or false");
  }

  number(key: string, fallback: number): number {
    const value = this.#get(key) ?? fallback;
    return is_finite(value) ? value : this.fail(key, "a finite number");
  }

  resample(key: string): ResampleCode {
    const names = Object.keys(RESAMPLE).join(", ");
    return resample_code(this.#get(key) ?? RESAMPLE.bilinear) ?? this.fail(key, `0 to 5 or one of ${names}`);
  }

  channel_numbers(key: string): number | number[] {
    const value = this.#get(key) ?? HALF;
    if (is_finite(value)) return value;
    const is_list = Array.isArray(value) && value.length >= 1 && value.length <= 4 && value.every(is_finite);
    return is_list ? [...value] : this.fail(key, "a finite number, or one for each of 1 to 4 channels");
  }

  statistics(): Pick<ImageProcessorSettings, "image_mean" | "image_std"> {
    const mean = this.channel_numbers("image_mean");
    const std = this.channel_numbers("image_std");
    if ([std].flat().some((value) => Math.fround(value) === 0))
      this.fail("image_std", "numbers other than 0, since pixels are divided by them");
    if (Array.isArray(mean) && Array.isArray(std) && mean.length !== std.length) {
      this.fail("image_std", `the same number of values as image_mean (${mean.length})`);
    }
    return { image_mean: mean, image_std: std };
  }

  crop_size(key: string): { height: number; width: number } {
    const size = this.size(key);
    return "height" in size ? size : this.fail(key, "a number, [height, width] or { height, width }");
  }

  size(key: string): ProcessorSize {
    const value = this.#get(key) ?? SQUARE;
    if (typeof value === "number") return this.#area(key, value, value);
    if (Array.isArray(value) && value.length === 2) return this.#area(key, value[0], value[1]);
    const { height, width, shortest_edge, longest_edge, max_height, max_width } = value as Record<
      string,
      unknown
    >;
    if (is_given(height) && is_given(width)) return this.#area(key, height, width);
    if (is_given(shortest_edge)) {
      const shortest = this.#side(key, shortest_edge);
      if (!is_given(longest_edge)) return { shortest_edge: shortest };
      return { shortest_edge: shortest, longest_edge: this.#side(key, longest_edge) };
    }
    if (is_given(max_height) && is_given(max_width)) {
      const area = this.#area(key, max_height, max_width);
      return { max_height: area.height, max_width: area.width };
    }
    return this.fail(
      key,
      "a number, [height, width], { height, width }, { shortest_edge, longest_edge? } or { max_height, max_width }",
    );
  }

  fail(key: string, expected: string): never {
    const value = this.#get(key);
    const got = value === undefined ? "its default" : show(value);
    throw new VitMsnError(this.#code, `${this.#where}: ${key} must be ${expected}; it is ${got}.`, {
      details: { file: this.#where, key, value },
    });
  }

  #get(key: string): unknown {
    return Object.hasOwn(this.#values, key) ? (this.#values[key] ?? undefined) : undefined;
  }

  #area(key: string, height: unknown, width: unknown): { height: number; width: number } {
    const area = { height: this.#side(key, height), width: this.#side(key, width) };
    if (area.height * area.width <= MAX_OUTPUT_PIXELS) return area;
    return this.fail(key, `up to ${MAX_OUTPUT_PIXELS} pixels in total`);
  }

  #side(key: string, value: unknown): number {
    const is_side = Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_SIDE;
    return is_side ? (value as number) : this.fail(key, `whole numbers of pixels from 1 to ${MAX_SIDE}`);
  }
}

function is_given(value: unknown): boolean {
  return value !== undefined && value !== null;
}

/** Finite as float32, in which pixels are computed. */
function is_finite(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(Math.fround(value));
}
