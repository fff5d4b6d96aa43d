/** What an engine on WebGPU takes. */
export const load_webgpu = () => import("./start_webgpu.ts");
