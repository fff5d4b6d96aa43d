/**
 * vit-msn/few-shot: the class behind pipeline("few-shot-image-classification"), for use with your own model and
 * processor, and the processor of the MSN paper's evaluations.
 *
 * @module
 */

export { msn_evaluation_processor } from "./learning/evaluation_processor.ts";
export * from "./pipelines/few_shot_image_classification.ts";
