/**
 * vit-msn/few-shot: the class behind pipeline("few-shot-image-classification"), for use with your own model and
 * processor.
 *
 * @module
 */
export * from "./pipelines/few_shot_image_classification.ts";
