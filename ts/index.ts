export type { LayerShape, TileChoice } from "./engine/engine.ts";
export type { AdapterInfo, ByteDot, EngineInfo, Level } from "./engine/engine_info.ts";
export type { Device, DeviceOptions } from "./engine/engine_options.ts";

/**
 * vit-msn: ViT-MSN in JavaScript, with the names of Hugging Face's ViTMSN page and of transformers.js.
 *
 * @module
 */

export { env } from "./checked_env.ts";
export { DeviceTensor } from "./device_tensor.ts";
export { type DtypeName, WEIGHT_DTYPES, type WeightDtype } from "./dtypes.ts";
export type { EngineMemory } from "./engine/engine.ts";
export type { Peak, Profile, ProfiledOp, ProfiledTotal } from "./engine/profile.ts";
export type { DecodedImage, Env, ImageToDecode, WebGpuEnv } from "./env.ts";
export { type ErrorCode, VitMsnError } from "./errors.ts";
export { IMAGE_EXTENSIONS, type ImageFormat, is_image_name } from "./image/formats.ts";
export * from "./image/image_processing_vit.ts";
export * from "./image/raw_image.ts";
export type { PenaltyScore } from "./learning/cross_validation.ts";
export type { Evaluation } from "./learning/evaluation.ts";
export type { FeatureKind } from "./learning/features.ts";
export type { FitReport } from "./learning/fit.ts";
export type {
  FewShotMethod,
  FitOptions,
  LearningProgress,
  LearningProgressCallback,
} from "./learning/fit_options.ts";
export type { NeighborWeights } from "./learning/heads.ts";
export { MSN_PENALTIES, type MsnPenalty, PENALTY_GRID } from "./learning/penalties.ts";
export type {
  FileInitiated,
  FileMap,
  FileProgress,
  LoadOptions,
  ModelReady,
  PretrainedSource,
  ProgressCallback,
  ProgressInfo,
} from "./loading/types.ts";
export {
  type AttnImplementation,
  type HiddenAct,
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
export { VIT_MSN_PRESETS, type ViTMSNPreset } from "./model/presets.ts";
export type { FromConfigOptions, ModelOptions, PretrainedOptions } from "./model/pretrained.ts";
export { type FetchUrlInit, fetch_url, type HeaderRecord } from "./network/fetch_url.ts";
export { show_url } from "./network/show_url.ts";
export type {
  FewShotCallOptions,
  FewShotFeatureOptions,
  FewShotImageClassificationPipeline,
  FewShotImageOptions,
  FewShotSaveOptions,
  LabelledImages,
} from "./pipelines/few_shot_image_classification.ts";
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
export {
  type LoadedModel,
  type PipelineOptions,
  type Pipelines,
  type PipelineTask,
  pipeline,
} from "./pipelines/pipeline.ts";
export { cos_sim, dot, normalize, type Vector } from "./similarity/vectors.ts";
export { Tensor, type TensorData, type TensorType } from "./tensor.ts";
