import { default_model, explain_missing } from "#default_model";
import { show, VitMsnError } from "../errors.ts";
import { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { check_pretrained } from "../loading/option_rules.ts";
import type { PretrainedSource } from "../loading/types.ts";
import { ViTMSNForImageClassification, ViTMSNModel } from "../model/modeling_vit_msn.ts";
import type { PretrainedOptions } from "../model/pretrained.ts";
import { on_demand } from "../on_demand.ts";
import { any, check_options, type Rules } from "../options.ts";
import type {
  FewShotFeatureOptions,
  FewShotImageClassificationPipeline,
} from "./few_shot_image_classification.ts";
import { ImageClassificationPipeline } from "./image_classification.ts";
import { ImageFeatureExtractionPipeline, POOL_RULES, type Pool } from "./image_feature_extraction.ts";

/** A loaded model; a task that needs a backbone also accepts a classifier. */
export type LoadedModel = ViTMSNForImageClassification | ViTMSNModel;

/** The options of pipeline(): from_pretrained's, and the defaults of a task's calls. */
export interface PipelineOptions extends PretrainedOptions, FewShotFeatureOptions {
  /** The image processor, required with a loaded model; default: the one next to the model. */
  image_processor?: ViTImageProcessor;
  /** "image-feature-extraction": the default `pool` of calls; default false. */
  pool?: Pool;
}

/** The pipeline of each task. */
export interface Pipelines {
  "image-classification": ImageClassificationPipeline;
  "image-feature-extraction": ImageFeatureExtractionPipeline;
  "few-shot-image-classification": FewShotImageClassificationPipeline;
}
export type PipelineTask = keyof Pipelines;

type Source = PretrainedSource | LoadedModel;

const LOADERS: {
  [T in PipelineTask]: (source: Source, options: PipelineOptions) => Promise<Pipelines[T]>;
} = {
  "image-classification": async (source, options) => {
    const processor = await processor_of(source, options);
    return new ImageClassificationPipeline(await classifier_of(source, options), processor);
  },
  "image-feature-extraction": async (source, options) => {
    const processor = await processor_of(source, options);
    return new ImageFeatureExtractionPipeline(
      await backbone_of(source, options),
      processor,
      options.pool ?? false,
    );
  },
  "few-shot-image-classification": async (source, options) => {
    const { features, normalize } = options;
    const { FewShotImageClassificationPipeline } = await on_demand(
      "few-shot learning",
      () => import("./few_shot_image_classification.ts"),
    );
    const processor = await processor_of(source, options);
    return new FewShotImageClassificationPipeline(await backbone_of(source, options), processor, {
      features,
      normalize,
    });
  },
};

/** The options of each task's pipeline, in addition to from_pretrained's. */
const TASK_RULES: Readonly<Record<PipelineTask, Rules>> = {
  "image-classification": {},
  "image-feature-extraction": POOL_RULES,
  "few-shot-image-classification": { features: any, normalize: any },
};
const PROCESSOR_RULES: Rules = {
  image_processor: ["a ViTImageProcessor", (value) => value instanceof ViTImageProcessor],
};

const is_loaded = (source: Source): source is LoadedModel =>
  source instanceof ViTMSNModel || source instanceof ViTMSNForImageClassification;

async function processor_of(source: Source, options: PipelineOptions): Promise<ViTImageProcessor> {
  if (options.image_processor !== undefined) return options.image_processor;
  if (!is_loaded(source)) return ViTImageProcessor.from_pretrained(source, pretrained(options));
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    "A loaded model needs its image processor; pass image_processor as well.",
    {
      details: { argument: "image_processor" },
    },
  );
}

/** The options for from_pretrained, without the pipeline's. */
function pretrained({
  image_processor,
  pool,
  features,
  normalize,
  ...options
}: PipelineOptions): PretrainedOptions {
  return options;
}

async function classifier_of(
  source: Source,
  options: PipelineOptions,
): Promise<ViTMSNForImageClassification> {
  if (!is_loaded(source)) return ViTMSNForImageClassification.from_pretrained(source, pretrained(options));
  if (source instanceof ViTMSNForImageClassification) return source;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    '"image-classification" needs a ViTMSNForImageClassification; a ViTMSNModel has no classes.',
    { details: { argument: "model" } },
  );
}

async function backbone_of(source: Source, options: PipelineOptions): Promise<ViTMSNModel> {
  if (!is_loaded(source)) return ViTMSNModel.from_pretrained(source, pretrained(options));
  return source instanceof ViTMSNModel ? source : source.vit;
}

/**
 * Loads a model and its image processor for a task.
 *
 * @param task "image-classification", "image-feature-extraction" or "few-shot-image-classification".
 * @param model a local folder, a hub repo id, a base URL or the files themselves; by default the small
 *   model that is bundled with this package (ten kinds of clothes). Or a loaded model, with
 *   options.image_processor: several pipelines may share it, and dispose() of any of them frees it.
 * @param options from_pretrained's options.
 * @throws VitMsnError UNSUPPORTED for another task, and what from_pretrained throws.
 */
export async function pipeline<T extends PipelineTask>(
  task: T,
  model?: PretrainedSource | LoadedModel,
  options: PipelineOptions = {},
): Promise<Pipelines[T]> {
  const load = Object.hasOwn(LOADERS, task) ? LOADERS[task] : undefined;
  if (load === undefined) {
    const tasks = Object.keys(LOADERS).join('" or "');
    throw new VitMsnError("UNSUPPORTED", `Task ${show(task)} is unknown; use "${tasks}".`);
  }
  const where = `pipeline("${task}")`;
  if (model !== undefined && is_loaded(model))
    check_options(where, options, PROCESSOR_RULES, TASK_RULES[task]);
  else check_pretrained(options, where, PROCESSOR_RULES, TASK_RULES[task]);
  if (model !== undefined) return load(model, options);
  return load(default_model(), options).catch((error) => {
    throw explain_missing(error);
  });
}
