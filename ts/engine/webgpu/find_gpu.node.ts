let dawn: Promise<GPU | undefined> | undefined;

/** What to do where there is no WebGPU. */
export const HOW_TO_GET_WEBGPU =
  'In Node it comes with the optional package webgpu (Dawn): run "npm install webgpu"; in Deno, start with --unstable-webgpu. ' +
  'device "wasm" runs the model on the CPU.';

/** The runtime's own WebGPU, else that of the package webgpu; undefined where there is neither. */
export async function find_gpu(): Promise<GPU | undefined> {
  const own = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (own) return own;
  dawn ??= load_dawn();
  return dawn;
}

async function load_dawn(): Promise<GPU | undefined> {
  try {
    const { create } = await import("webgpu");
    return create([]);
  } catch {
    return undefined; // it isn't installed, or has no binary for this machine
  }
}
