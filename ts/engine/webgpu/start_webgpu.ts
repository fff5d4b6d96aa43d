import { VitMsnError } from "../../errors.ts";
import type { EngineInfo } from "../engine_info.ts";
import { is_for_webgpu, load_wasm_module, type WasmInput } from "../wasm/load_wasm.ts";
import { describe_device, type OpenedDevice, open_device } from "./webgpu_device.ts";
import { create_webgpu_engine, type WebGpuEngine } from "./webgpu_engine.ts";

/** An engine on WebGPU. */
export interface StartedWebGpu {
  engine: WebGpuEngine;
  device: "webgpu";
  engine_info: EngineInfo;
}

/**
 * Starts an engine on the caller's device, or on a new one.
 * @param cache_dir the folder that caches earlier choices of tiles; default env.cache_dir.
 * @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT, OUT_OF_MEMORY or IO.
 */
export async function start_webgpu(
  device: "webgpu" | "auto" | GPUDevice,
  given: WasmInput | undefined,
  cache_dir: string | undefined,
): Promise<StartedWebGpu> {
  const opened =
    typeof device === "object" ? await describe_device(device) : await open_device(device !== "auto");
  try {
    const module = await load_wasm_module(given, "webgpu");
    if (!is_for_webgpu(module)) throw wrong_binary();
    const engine = await create_webgpu_engine(module, opened, cache_dir);
    return { engine, device: "webgpu", engine_info: describe(opened, device, engine.findings) };
  } catch (error) {
    if (opened.is_own) opened.device.destroy();
    throw error;
  }
}

function wrong_binary(): VitMsnError {
  return new VitMsnError(
    "INVALID_ARGUMENT",
    'The passed WebAssembly is the CPU\'s: device "webgpu" takes vit_msn_webgpu.wasm.',
  );
}

function describe(
  { adapter }: OpenedDevice,
  device: "webgpu" | "auto" | GPUDevice,
  findings: readonly string[],
): EngineInfo {
  const kind = adapter.is_software ? "a software renderer on the CPU" : "a GPU";
  const why =
    typeof device === "object"
      ? "the device that was passed"
      : device === "auto"
        ? "the best one available"
        : 'as device "webgpu" asks for';
  const reasons = Object.freeze([`On WebGPU: ${adapter.name}, ${kind}, ${why}.`, ...findings]);
  return Object.freeze({ level: "webgpu", threads: 1, worker: false, reasons, adapter });
}
