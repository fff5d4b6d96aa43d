import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import type { ImageInput } from "../image/raw_image.ts";
import type { ViTMSNModel } from "../model/modeling_vit_msn.ts";
import { check_options } from "../options.ts";
import { concatenate, type Tensor } from "../tensor.ts";
import { CALL_RULES, ImagePipeline, type ImagePipelineCallOptions } from "./image_pipeline.ts";

/**
 * true or "cls": the CLS token after the final layernorm; "mean": the mean of the patch tokens; false: every
 * token.
 */
export type Pool = boolean | "cls" | "mean";

export interface ImageFeatureExtractionOptions extends ImagePipelineCallOptions {
  /** Default: the `pool` of pipeline(), else false. */
  pool?: Pool;
}

/** The option of pipeline() and its calls. */
export const POOL_RULES = { pool: [true, false, "cls", "mean"] };

/**
 * pipeline("image-feature-extraction"): last_hidden_state [batch, tokens, hidden_size], or with `pool`
 * embeddings [batch, hidden_size]. ViT-MSN has no pooler layer, so the reference refuses to pool; here `pool:
 * true` returns the CLS token, which MSN trains.
 */
export class ImageFeatureExtractionPipeline extends ImagePipeline<
  ViTMSNModel,
  [images: ImageInput | readonly ImageInput[], options?: ImageFeatureExtractionOptions],
  Tensor<"float32">
> {
  /** Set explicitly, since minifiers rename classes. */
  static override readonly name: string = "ImageFeatureExtractionPipeline";
  readonly task = "image-feature-extraction";
  readonly #pool: Pool;

  constructor(model: ViTMSNModel, processor: ViTImageProcessor, pool: Pool) {
    super(model, processor);
    check_options("ImageFeatureExtractionPipeline", { pool }, POOL_RULES);
    this.#pool = pool;
  }

  override async _call(
    images: ImageInput | readonly ImageInput[],
    options: ImageFeatureExtractionOptions = {},
  ): Promise<Tensor<"float32">> {
    check_options("The image-feature-extraction call", options, CALL_RULES, POOL_RULES);
    const { pool = this.#pool } = options;
    const parts: Tensor<"float32">[] = [];
    for await (const inputs of this.batches(images, options)) {
      parts.push(
        pool === false
          ? (await this.model.forward(inputs)).last_hidden_state
          : await this.model.get_image_features(inputs, pool === true ? "cls" : pool),
      );
    }
    return concatenate(parts);
  }
}
