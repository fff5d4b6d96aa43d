import { VitMsnError } from "../errors.ts";
import { type ImageProcessorSettings, MAX_OUTPUT_PIXELS } from "./image_processor_config.ts";
import { output_size } from "./output_size.ts";

/** In pixels. */
export interface Area {
  width: number;
  height: number;
}

/** The size that an image is resized to. @throws VitMsnError INVALID_IMAGE that names the image by its index. */
export function processed_size(image: Area, settings: ImageProcessorSettings, index: number): Area {
  if (!settings.do_resize) return image;
  const [height, width] = output_size(settings.size, image.height, image.width);
  check_output(height, width, image, index);
  return { width, height };
}

/** The size of every processed image; undefined where it depends on the image. */
export function fixed_size({
  do_center_crop,
  crop_size,
  do_resize,
  size,
}: ImageProcessorSettings): Area | undefined {
  if (do_center_crop) return crop_size;
  return do_resize && "height" in size ? size : undefined;
}

/** @throws VitMsnError INVALID_IMAGE unless the processed image has 1 to MAX_OUTPUT_PIXELS pixels. */
export function check_output(height: number, width: number, image: Area, index: number): void {
  if (height >= 1 && width >= 1 && height * width <= MAX_OUTPUT_PIXELS) return;
  throw new VitMsnError(
    "INVALID_IMAGE",
    `Image ${index} of ${image.width}×${image.height} pixels would become ${width}×${height}; ` +
      `it must have 1 to ${MAX_OUTPUT_PIXELS} pixels. Crop it, or set size.`,
    { details: { index, width, height } },
  );
}

/** @throws VitMsnError INVALID_ARGUMENT where [channels, height, width] isn't the first image's. */
export function check_same_shape(first: readonly number[], shape: readonly number[], index: number): void {
  if (first.every((size, i) => size === shape[i])) return;
  const show = ([channels, height, width]: readonly number[]) =>
    `${width}×${height} pixels and ${channels} channels`;
  throw invalid(
    `Processed images of a batch must have one shape: image 0 has ${show(first)}, image ${index} ${show(shape)}. ` +
      "Set size, or pass them one by one.",
  );
}

/** What each of the 256 pixel values becomes, for each channel, rounded to float32 at the reference's places. */
export function value_tables(settings: ImageProcessorSettings, channels: number): Float32Array[] {
  const { do_rescale, rescale_factor, do_normalize } = settings;
  const means = per_channel(settings.image_mean, channels, do_normalize);
  const stds = per_channel(settings.image_std, channels, do_normalize);
  return Array.from({ length: channels }, (_, c) => {
    const mean = Math.fround(means[c] as number);
    const std = Math.fround(stds[c] as number);
    const table = Float32Array.from({ length: 256 }, (_, value) => {
      const scaled = Math.fround(do_rescale ? value * rescale_factor : value);
      return do_normalize ? Math.fround(Math.fround(scaled - mean) / std) : scaled;
    });
    if (table.every(Number.isFinite)) return table;
    throw invalid(
      `rescale_factor ${rescale_factor}, image_mean ${means[c]} and image_std ${stds[c]} overflow float32 when combined.`,
    );
  });
}

function per_channel(values: number | number[], channels: number, is_used: boolean): number[] {
  if (typeof values === "number") return new Array<number>(channels).fill(values);
  if (is_used && values.length !== channels) {
    throw invalid(
      `The image has ${channels} channels, but image_mean and image_std have ${values.length}; ` +
        `set do_convert_rgb, or convert the image first, as with image.${values.length === 1 ? "grayscale" : "rgb"}().`,
    );
  }
  return values;
}

function invalid(message: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message);
}
