import { readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { read_variable } from "../../network/proxy_settings.node.ts";

let dawn: Promise<GPU | undefined> | undefined;

/** What to do if there is no WebGPU. */
export const HOW_TO_GET_WEBGPU =
  'In Node it comes with the optional package webgpu (Dawn): run "npm install webgpu"; in Deno, start with --unstable-webgpu. ' +
  'device "wasm" runs the model on the CPU.';

/**
 * The runtime's own WebGPU, else that of the package webgpu; undefined if there is neither.
 * @param is_auto whether the device is "auto": then Dawn, which warns on standard error about every driver that it
 *   can't use, isn't loaded on machines without a GPU.
 * @throws VitMsnError UNSUPPORTED if "auto" needn't look.
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

/** Whether there is certainly no GPU. If the user chose drivers or accepts software adapters, Dawn has to be asked. */
function has_no_gpu(): boolean {
  const is_chosen = DRIVER_VARIABLES.some((name) => read_variable(name) !== undefined);
  if (process.platform !== "linux" || is_chosen || env.webgpu.allow_software) return false;
  const nodes = [...names_in("/dev"), ...names_in("/dev/dri")];
  return nodes.length > 0 && !nodes.some((name) => /^(?:renderD|nvidia|dxg|kgsl|mali)/.test(name));
}

/** The names in a folder; empty if it doesn't exist or may not be read. */
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

/** A GPU whose drivers don't log, unless the user has enabled it. They log while an adapter is requested. */
function quiet(gpu: GPU): GPU {
  const request = gpu.requestAdapter.bind(gpu);
  gpu.requestAdapter = (options) => {
    // These stop Vulkan's loader and Mesa from logging problems of drivers that aren't used.
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
