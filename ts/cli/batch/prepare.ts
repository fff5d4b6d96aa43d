import { prepare_image } from "../../image/index.ts";
import { type RawImage, ViTImageProcessor, type ViTMSNModel } from "../../index.ts";

interface Pipeline {
  processor: ViTImageProcessor;
  model: Pick<ViTMSNModel, "device" | "engine_info">;
}

/** Splits a pipeline's processor in two: images are made small as soon as they are decoded, the rest is done by batches. */
export interface Preparation {
  prepare(image: RawImage, signal: AbortSignal): Promise<RawImage>;
  /** The processor for prepared images. */
  processor: ViTImageProcessor;
}

/** A GPU of this thread does all of it by itself, and faster. */
export function preparation({ processor, model }: Pipeline): Preparation {
  const { device, engine_info } = model;
  if (device === "webgpu" && !engine_info.worker) return { prepare: async (image) => image, processor };
  return {
    prepare: (image, signal) => prepare_image(image, processor, signal),
    processor: new ViTImageProcessor({ ...processor.to_dict(), do_resize: false, do_center_crop: false }),
  };
}
