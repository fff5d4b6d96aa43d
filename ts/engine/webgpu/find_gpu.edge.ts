/** What to do if there is no WebGPU. */
export const HOW_TO_GET_WEBGPU = 'Edge workers have none: device "wasm" runs the model on the CPU.';

export async function find_gpu(_is_auto: boolean): Promise<GPU | undefined> {
  return undefined;
}
