/** What to do if there is no WebGPU. */
export const HOW_TO_GET_WEBGPU =
  "Browsers have it in pages served by https or from localhost (Chrome and Edge 113, Safari 26, some of Firefox 141, or newer). " +
  'device "wasm" runs the model on the CPU.';

/** The browser's WebGPU; undefined if there is none. */
export async function find_gpu(_is_auto: boolean): Promise<GPU | undefined> {
  return (globalThis.navigator as Navigator | undefined)?.gpu;
}
