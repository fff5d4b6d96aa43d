/**
 * vit-msn/few-shot: the class behind pipeline("few-shot-image-classification"), for a model and a processor of one's own.
 *
 * @module
 */
export * from "./pipelines/few_shot_image_classification.ts";
