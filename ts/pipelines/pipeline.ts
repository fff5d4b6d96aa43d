import { default_model } from "../default_model.ts";
import { VitMsnError } from "../errors.ts";
import { ViTImageProcessor } from "../image/image_processing_vit.ts";
import type { PretrainedSource } from "../loading/types.ts";
import { ViTMSNForImageClassification, ViTMSNModel } from "../model/modeling_vit_msn.ts";
import type { PretrainedOptions } from "../model/pretrained.ts";
import { on_demand } from "../on_demand.ts";
import type {
  FewShotFeatureOptions,
  FewShotImageClassificationPipeline,
} from "./few_shot_image_classification.ts";
import { ImageClassificationPipeline } from "./image_classification.ts";
import { ImageFeatureExtractionPipeline, type Pool } from "./image_feature_extraction.ts";

/** The options of pipeline(): from_pretrained's, and the defaults of a task's calls. */
export interface PipelineOptions extends PretrainedOptions, FewShotFeatureOptions {
  /** "image-feature-extraction": what calls return when they don't say; default false. */
  pool?: Pool;
}

/** The pipeline that each task makes. */
export interface Pipelines {
  "image-classification": ImageClassificationPipeline;
  "image-feature-extraction": ImageFeatureExtractionPipeline;
  "few-shot-image-classification": FewShotImageClassificationPipeline;
}
export type PipelineTask = keyof Pipelines;

const LOADERS: {
  [T in PipelineTask]: (source: PretrainedSource, options: PipelineOptions) => Promise<Pipelines[T]>;
} = {
  "image-classification": async (source, options) => {
    const processor = await ViTImageProcessor.from_pretrained(source, options);
    const model = await ViTMSNForImageClassification.from_pretrained(source, options);
    return new ImageClassificationPipeline(model, processor);
  },
  "image-feature-extraction": async (source, options) => {
    const processor = await ViTImageProcessor.from_pretrained(source, options);
    const model = await ViTMSNModel.from_pretrained(source, options);
    return new ImageFeatureExtractionPipeline(model, processor, options.pool ?? false);
  },
  "few-shot-image-classification": async (source, options) => {
    const { FewShotImageClassificationPipeline } = await on_demand(
      "few-shot learning",
      () => import("./few_shot_image_classification.ts"),
    );
    const processor = await ViTImageProcessor.from_pretrained(source, options);
    const model = await ViTMSNModel.from_pretrained(source, options);
    return new FewShotImageClassificationPipeline(model, processor, options);
  },
};

/**
 * Loads a model and its image processor for a task.
 *
 * @param task "image-classification", "image-feature-extraction" or "few-shot-image-classification".
 * @param model a local folder, a hub repo id, a base URL or the files themselves; default the small model that this
 *   package carries (ten kinds of clothes).
 * @param options from_pretrained's options.
 * @throws VitMsnError UNSUPPORTED for another task, and what from_pretrained throws.
 */
export async function pipeline<T extends PipelineTask>(
  task: T,
  model: PretrainedSource = default_model(),
  options: PipelineOptions = {},
): Promise<Pipelines[T]> {
  const load = Object.hasOwn(LOADERS, task) ? LOADERS[task] : undefined;
  if (load === undefined) {
    const tasks = Object.keys(LOADERS).join('" or "');
    throw new VitMsnError(
      "UNSUPPORTED",
      `Task ${JSON.stringify(task)} is not one of this package's: "${tasks}".`,
    );
  }
  return load(model, options);
}
