import { VitMsnError } from "../../errors.ts";
import { HOW_TO_GET_WEBGPU } from "./find_gpu.edge.ts";

/** @throws VitMsnError UNSUPPORTED always. */
export async function load_webgpu(): Promise<typeof import("./start_webgpu.ts")> {
  throw new VitMsnError("UNSUPPORTED", `This build has no WebGPU engine. ${HOW_TO_GET_WEBGPU}`);
}
