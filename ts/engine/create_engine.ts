import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import type { Engine } from "./engine.ts";
import { load_wasm_module } from "./load_wasm.ts";
import { create_wasm_engine } from "./wasm_engine.ts";

/** A device that a model runs on. */
export type Device = "wasm";

/** Where a model runs. */
export interface DeviceOptions {
  /** "auto" (default) takes the best that there is; "wasm" is the CPU. "webgpu" is not available in this version. */
  device?: Device | "webgpu" | "auto";
  /** Threads of the CPU engine. This version runs one, and says so where more are asked for. Default 1. */
  num_threads?: number;
  /** The engine's WebAssembly for this model; default env.wasm, else the file beside this package's JavaScript. */
  wasm?: WebAssembly.Module | BufferSource | URL | Response;
}

/**
 * Starts an engine of its own for one model: disposing it returns all its memory, and a fault in it harms no other.
 * @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT or IO.
 */
export async function create_engine(options: DeviceOptions): Promise<{ engine: Engine; device: Device }> {
  check_device(options.device ?? "auto");
  check_threads(options.num_threads ?? 1);
  const module = await load_wasm_module(options.wasm ?? env.wasm);
  return { engine: create_wasm_engine(module), device: "wasm" };
}

function check_device(device: string): void {
  if (device === "webgpu") {
    throw new VitMsnError(
      "UNSUPPORTED",
      'device "webgpu" is not available in this version; use "wasm", or "auto" to get the best that there is.',
    );
  }
  if (device !== "wasm" && device !== "auto") {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `device must be "wasm", "webgpu" or "auto", got ${JSON.stringify(device)}.`,
    );
  }
}

function check_threads(num_threads: number): void {
  if (!Number.isInteger(num_threads) || num_threads < 1) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `num_threads must be a whole number from 1 on, got ${String(num_threads)}.`,
    );
  }
  if (num_threads > 1) {
    env.warn(`vit-msn: this version computes on one thread; num_threads ${num_threads} has no effect.`);
  }
}
