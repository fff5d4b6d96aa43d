import type { Level } from "../engine_info.ts";
import relaxed from "../vit_msn_relaxed.wasm";

/**
 * The engine's module for edge workers, which may not compile bytes: it is imported, and so compiled when the worker is
 * deployed. One level is enough, since all edge runtimes have relaxed SIMD and none has threads.
 */
export async function default_wasm(_level: Level | "webgpu"): Promise<WebAssembly.Module> {
  return relaxed;
}
