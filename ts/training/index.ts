/**
 * vit-msn/training: pre-training and fine-tuning on your own images, with the names of transformers' Trainer.
 *
 * @module
 */
export * from "./callbacks.ts";
export type {
  Batch,
  CollateContext,
  Collator,
  DataCollator,
  DrawnExample,
  ImageCollatorOptions,
} from "./data/collate.ts";
export { image_collator } from "./data/collate.ts";
export {
  adjust_brightness,
  adjust_contrast,
  adjust_hue,
  adjust_saturation,
  type ColorJitterOptions,
  color_jitter,
  random_apply,
  random_grayscale,
} from "./data/color_transforms.ts";
export type {
  Dataset,
  Example,
  ExampleLabel,
  ExampleStream,
  LazyImage,
  TensorData,
  TrainingData,
} from "./data/dataset.ts";
export { read_image } from "./data/dataset.ts";
export { type ErasingOptions, erasing_collator } from "./data/erasing.ts";
export { gaussian_blur, random_gaussian_blur } from "./data/gaussian_blur.ts";
export { ImageFolder, type ImageFolderOptions } from "./data/image_folder.ts";
export { LabelledImages } from "./data/labelled_images.ts";
export { type MixingOptions, mixing_collator } from "./data/mixing.ts";
export {
  image_splits,
  type LabelledImagesOptions,
  type LabelledImagesSource,
  open_labelled_images,
} from "./data/open_labelled_images.ts";
export { type RandAugmentOptions, rand_augment } from "./data/rand_augment.ts";
export type { Split } from "./data/split_names.ts";
export {
  compose,
  type ImageTransform,
  mirror,
  type RandomResizedCropOptions,
  type ReferenceTransforms,
  random_horizontal_flip,
  random_resized_crop,
  reference_transforms,
  type Size,
} from "./data/transforms.ts";
export { UnlabelledImageFolder, type UnlabelledImageFolderOptions } from "./data/unlabelled_image_folder.ts";
export { compute_gradients, type GradientOptions, type LossAndGradients } from "./gradients.ts";
export {
  type ComputeLoss,
  type CrossEntropyOptions,
  cross_entropy_loss,
  type DistillationOptions,
  distillation_loss,
  type LossInputs,
  type LossOfLogits,
} from "./losses.ts";
export {
  argmax_rows,
  type ClassMetrics,
  type ComputeMetrics,
  class_metrics,
  classification_metrics,
  confusion_matrix,
  type EvalPrediction,
  multi_label_metrics,
  regression_metrics,
} from "./metrics.ts";
export {
  MSN_PRETRAINING_OPTIONS,
  MSNPretrainingArguments,
  type MSNPretrainingOptions,
} from "./msn/msn_arguments.ts";
export * from "./msn/msn_callbacks.ts";
export { msn_encoder } from "./msn/msn_encoder.ts";
export type { MSNStepTimes } from "./msn/msn_learner.ts";
export * from "./msn/msn_pretrainer.ts";
export { type MSNScheduleSteps, type MSNStepRates, msn_rates } from "./msn/msn_schedules.ts";
export type { MSNLogs, MSNMean, MSNPretrainerState, MSNRunningSums } from "./msn/msn_state.ts";
export {
  type MSNTransforms,
  type MSNViewOptions,
  type MSNViews,
  msn_transforms,
  msn_view_collator,
  type ViewCollator,
} from "./msn/msn_views.ts";
export { OriginalMSNCheckpoint } from "./msn/original_checkpoint.ts";
export { OPTIMIZERS, type OptimizerName } from "./optimizers.ts";
export type { Freezing } from "./parameters.ts";
export { Random } from "./random.ts";
export type { ResumeOptions } from "./resuming.ts";
export { learning_rate_factor, SCHEDULES, type Schedule, type ScheduleSteps } from "./schedules.ts";
export * from "./trainer.ts";
export type { LogEntry, RunningSums, TrainerState } from "./trainer_state.ts";
export {
  type OptionRule,
  type SamplingStrategy,
  STRATEGIES,
  type Strategy,
  type TestTimeAugmentation,
  TRAINING_OPTIONS,
  TrainingArguments,
  type TrainingOptions,
  unmet_rule,
} from "./training_arguments.ts";
