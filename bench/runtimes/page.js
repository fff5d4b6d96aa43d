// The same in a page, which bench/runtimes.ts serves.
import { measure } from "./measure.mjs";

/** @param {string} model */
export function vit_msn(model) {
  return measure(async () => {
    const { env, pipeline } = await import("vit-msn");
    env.use_cache = false;
    const classify = await pipeline("image-classification", `/models/${model}`, { device: "wasm" });
    return () => classify("/image.jpg", { top_k: 1 });
  });
}

/** @param {string} model */
export function transformers_js(model) {
  return measure(async () => {
    // @ts-expect-error It isn't a dependency.
    const { env, pipeline } = await import("@huggingface/transformers");
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.localModelPath = "/models/";
    env.useBrowserCache = false;
    env.useWasmCache = false;
    env.backends.onnx.wasm.wasmPaths = "/ort/";
    env.backends.onnx.wasm.numThreads = 1;
    const classify = await pipeline("image-classification", model, { dtype: "fp32", device: "wasm" });
    return () => classify("/image.jpg", { top_k: 1 });
  });
}
