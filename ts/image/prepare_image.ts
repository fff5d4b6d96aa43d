import { Pacer } from "../engine/pacer.ts";
import { transform, type ViTImageProcessor } from "./image_processing_vit.ts";
import type { RawImage } from "./raw_image.ts";

/**
 * The processor's steps on 8-bit values (channels, resizing, cropping), whose result is small. What remains is done by a
 * processor that neither resizes nor crops.
 */
export function prepare_image(
  image: RawImage,
  processor: ViTImageProcessor,
  signal?: AbortSignal,
): Promise<RawImage> {
  return transform(image, processor, 0, new Pacer(signal, "Preprocessing"));
}
