/** Loads the code for WebGPU. */
export const load_webgpu = () => import("./start_webgpu.ts");
