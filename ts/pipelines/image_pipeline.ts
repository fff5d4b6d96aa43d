import { Callable } from "../callable.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { fixed_size } from "../image/processed_size.ts";
import type { ImageInput } from "../image/raw_image.ts";
import { check_size, type ForwardInputs } from "../model/inputs.ts";
import type { PreTrainedModel } from "../model/pretrained.ts";
import { on_demand } from "../on_demand.ts";
import { abort_signal, count, type Rules } from "../options.ts";
import type { Tensor } from "../tensor.ts";

/** The options of every pipeline call. */
export interface ImagePipelineCallOptions {
  /** Images per forward pass; default 1. On a CPU, larger batches take more memory and save little time. */
  batch_size?: number;
  signal?: AbortSignal;
}

/** ImagePipelineCallOptions. */
export const CALL_RULES: Rules = { batch_size: count, signal: abort_signal };

/** The base of the pipelines: a model with its processor, and images in batches. */
export abstract class ImagePipeline<
  Model extends PreTrainedModel<never, unknown>,
  Args extends unknown[],
  Result,
> extends Callable<Args, Promise<Result>> {
  readonly model: Model;
  readonly processor: ViTImageProcessor;

  constructor(model: Model, processor: ViTImageProcessor) {
    super();
    this.model = model;
    this.processor = processor;
  }

  /** Frees the model's memory. */
  async dispose(): Promise<void> {
    await this.model.dispose();
  }

  /**
   * The inputs of each forward pass for one image or a list, batch by batch. One batch is decoded at a time, while the one
   * before it is computed.
   */
  protected async *batches(
    images: ImageInput | readonly ImageInput[],
    { batch_size = 1, signal }: ImagePipelineCallOptions,
  ): AsyncGenerator<ForwardInputs & { pixel_values: Tensor<"float32"> }> {
    // Before any image is decoded and resized.
    const size = fixed_size(this.processor);
    if (size) check_size(size.height, size.width, this.model.config, false);
    const prepare = (batch: ImageInput | readonly ImageInput[]) =>
      this.processor(batch as ImageInput, { signal, device: this.model });
    const outputs = Array.isArray(images)
      ? (await on_demand("batching", () => import("./ahead.ts"))).read_ahead(images, batch_size, prepare)
      : [await prepare(images)];
    for await (const { pixel_values } of outputs) {
      try {
        yield { pixel_values, signal };
      } finally {
        pixel_values.dispose();
      }
    }
  }
}
