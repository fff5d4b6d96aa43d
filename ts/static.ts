/**
 * vit-msn/static: all of vit-msn but training in one file that imports nothing later, for service workers.
 *
 * @module
 */
export { FewShotImageClassificationPipeline } from "./few_shot.ts";
export * from "./index.ts";
