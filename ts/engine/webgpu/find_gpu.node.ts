import { readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { read_variable } from "../../network/proxy_settings.node.ts";

let dawn: Promise<GPU | undefined> | undefined;

/** What to do where there is no WebGPU. */
export const HOW_TO_GET_WEBGPU =
  'In Node it comes with the optional package webgpu (Dawn): run "npm install webgpu"; in Deno, start with --unstable-webgpu. ' +
  'device "wasm" runs the model on the CPU.';

/**
 * The runtime's own WebGPU, else that of the package webgpu; undefined where there is neither.
 * @param is_auto whether device "auto" is only looking: then Dawn, which warns on standard error of every driver that it can't
 *   use, isn't loaded on machines without a GPU.
 * @throws VitMsnError UNSUPPORTED where "auto" needn't look.
 */
export async function find_gpu(is_auto: boolean): Promise<GPU | undefined> {
  const own = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (own) return own;
  if (is_auto && has_no_gpu()) {
    throw new VitMsnError(
      "UNSUPPORTED",
      'Linux shows no GPU here (/dev/dri/renderD*, /dev/nvidia*, /dev/dxg); device "webgpu" looks for software ones, too.',
    );
  }
  dawn ??= load_dawn();
  return dawn;
}

const DRIVER_VARIABLES = ["VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES"];

/** Whether it is certain that there is no GPU. Drivers that were chosen, or software ones that will do, are worth a look. */
function has_no_gpu(): boolean {
  const is_chosen = DRIVER_VARIABLES.some((name) => read_variable(name) !== undefined);
  if (process.platform !== "linux" || is_chosen || env.webgpu.allow_software) return false;
  const nodes = [...names_in("/dev"), ...names_in("/dev/dri")];
  return nodes.length > 0 && !nodes.some((name) => /^(?:renderD|nvidia|dxg|kgsl|mali)/.test(name));
}

/** Nothing where there is no such folder, or it may not be read. */
function names_in(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

async function load_dawn(): Promise<GPU | undefined> {
  try {
    const { create } = await import("webgpu");
    return quiet(create([]));
  } catch {
    return undefined; // it isn't installed, or has no binary for this machine
  }
}

/** A GPU whose drivers are silent where the user hasn't asked them to speak. They write while an adapter is requested. */
function quiet(gpu: GPU): GPU {
  const request = gpu.requestAdapter.bind(gpu);
  gpu.requestAdapter = (options) => {
    // What keeps Vulkan's loader and Mesa from writing what is wrong with drivers that nobody asked for.
    const quiet = { VK_LOADER_DEBUG: "none", XDG_RUNTIME_DIR: tmpdir() };
    const unset = Object.entries(quiet).filter(([name]) => process.env[name] === undefined);
    for (const [name, value] of unset) process.env[name] = value;
    try {
      return request(options);
    } finally {
      for (const [name] of unset) delete process.env[name];
    }
  };
  return gpu;
}
