/**
 * vit-msn/static: all of vit-msn except training in one file without dynamic imports, for service workers.
 *
 * @module
 */
export { FewShotImageClassificationPipeline } from "./few_shot.ts";
export * from "./index.ts";
export * from "./similarity/image_index.ts";
