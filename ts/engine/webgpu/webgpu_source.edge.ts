import { VitMsnError } from "../../errors.ts";

/** What to do where there is no WebGPU. */
export const HOW_TO_GET_WEBGPU = 'Edge workers have none: device "wasm" runs the model on the CPU.';

export async function find_gpu(): Promise<GPU | undefined> {
  return undefined;
}

/** @throws VitMsnError UNSUPPORTED always. */
export async function load_webgpu(): Promise<typeof import("./start_webgpu.ts")> {
  throw new VitMsnError("UNSUPPORTED", `This build has no WebGPU engine. ${HOW_TO_GET_WEBGPU}`);
}
