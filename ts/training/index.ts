/**
 * vit-msn/training: fine-tuning on one's own pictures. Names are those of transformers' Trainer.
 *
 * @module
 */
export * from "./callbacks.ts";
export type {
  Batch,
  CollateContext,
  DataCollator,
  DrawnExample,
  ImageCollatorOptions,
} from "./data/collate.ts";
export { image_collator } from "./data/collate.ts";
export type {
  Dataset,
  Example,
  ExampleLabel,
  ExampleStream,
  TensorData,
  TrainingData,
} from "./data/dataset.ts";
export { ImageFolder, type ImageFolderOptions } from "./data/image_folder.ts";
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
export { compute_gradients, type GradientOptions, type LossAndGradients } from "./gradients.ts";
export { argmax_rows, type ComputeMetrics, confusion_matrix, type EvalPrediction } from "./metrics.ts";
export { OPTIMIZERS, type OptimizerName } from "./optimizers.ts";
export type { Freezing } from "./parameters.ts";
export { Random } from "./random.ts";
export { learning_rate_factor, SCHEDULES, type Schedule, type ScheduleSteps } from "./schedules.ts";
export * from "./trainer.ts";
export type { LogEntry, RunningSums, TrainerState } from "./trainer_state.ts";
export {
  type OptionRule,
  STRATEGIES,
  type Strategy,
  TRAINING_OPTIONS,
  TrainingArguments,
  type TrainingOptions,
  unmet_rule,
} from "./training_arguments.ts";
