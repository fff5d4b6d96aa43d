/**
 * vit-msn: ViT-MSN in JavaScript. Names are those of Hugging Face's ViTMSN page and of transformers.js.
 *
 * @module
 */
export type { Device, DeviceOptions } from "./engine/create_engine.ts";
export type { EngineMemory } from "./engine/engine.ts";
export type { EngineInfo, Level } from "./engine/levels.ts";
export { type Env, env } from "./env.ts";
export { type ErrorCode, VitMsnError } from "./errors.ts";
export * from "./image/image_processing_vit.ts";
export * from "./image/raw_image.ts";
export type {
  FileMap,
  LoadOptions,
  PretrainedSource,
  ProgressCallback,
  ProgressInfo,
} from "./loading/types.ts";
export {
  type AttnImplementation,
  type ProblemType,
  ViTMSNConfig,
  type ViTMSNConfigFields,
  type ViTMSNConfigInit,
} from "./model/configuration_vit_msn.ts";
export type { ForwardInputs } from "./model/inputs.ts";
export type { Labels } from "./model/losses.ts";
export {
  type ClassificationInputs,
  ViTMSNForImageClassification,
  ViTMSNModel,
} from "./model/modeling_vit_msn.ts";
export type { BaseModelOutput, ImageClassifierOutput, ModelOutput } from "./model/outputs.ts";
export type { DtypeName, FromConfigOptions, ModelOptions, PretrainedOptions } from "./model/pretrained.ts";
export {
  type ClassificationResult,
  type FunctionToApply,
  type ImageClassificationOptions,
  ImageClassificationPipeline,
} from "./pipelines/image_classification.ts";
export {
  type ImageFeatureExtractionOptions,
  ImageFeatureExtractionPipeline,
  type Pool,
} from "./pipelines/image_feature_extraction.ts";
export type { ImagePipelineCallOptions } from "./pipelines/image_pipeline.ts";
export { type PipelineOptions, type Pipelines, type PipelineTask, pipeline } from "./pipelines/pipeline.ts";
export { Tensor, type TensorData, type TensorType } from "./tensor.ts";
