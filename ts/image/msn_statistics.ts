import type { ImageProcessorOptions } from "./image_processor_config.ts";

/** How MSN normalises images: ImageNet's mean and deviation for RGB; 0.5 for any other number of channels. */
export function msn_statistics(
  num_channels: number,
): Required<Pick<ImageProcessorOptions, "do_convert_rgb" | "image_mean" | "image_std">> {
  if (num_channels !== 3) return { do_convert_rgb: false, image_mean: 0.5, image_std: 0.5 };
  return { do_convert_rgb: true, image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225] };
}
