import type { LoadOptions } from "../loading/types.ts";
import type { Engine } from "./engine.ts";
import type { EngineInfo } from "./engine_info.ts";

/** A device that a model runs on. */
export type Device = "wasm" | "webgpu";

/** Where a model runs. */
export interface DeviceOptions {
  /**
   * "auto" (default) uses WebGPU if there is a real GPU, else "wasm", the CPU; `engine_info` reports which and why.
   * "webgpu" uses WebGPU even if its adapter is software. A GPUDevice of the caller is used, but never destroyed.
   */
  device?: Device | "auto" | GPUDevice;
  /**
   * Threads of the CPU engine, up to 64; default 1. More than one need shared memory, which in pages needs cross-origin
   * isolation. If they can't start, the model runs on fewer threads, and `engine_info` reports why.
   */
  num_threads?: number;
  /**
   * Whether the engine runs in a Worker, so that this thread stays free while the model loads and computes. Default
   * false; true on the main thread of a page, which may not block, if num_threads is above 1.
   */
  worker?: boolean;
  /** The engine's WebAssembly for this model; default env.wasm, else the file next to this package's JavaScript. */
  wasm?: WebAssembly.Module | BufferSource | URL | Response;
}

/** How an engine is started, and where results about a GPU are cached. */
export type EngineOptions = DeviceOptions & Pick<LoadOptions, "cache_dir">;

/** An engine, and where and how it runs. */
export interface StartedEngine {
  engine: Engine;
  device: Device;
  engine_info: EngineInfo;
}
