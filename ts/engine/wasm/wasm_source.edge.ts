import type { Level } from "../engine_info.ts";
import relaxed from "../vit_msn_relaxed.wasm";

/**
 * The engine's module as edge workers have it, which may not compile bytes: imported, so that it is compiled when the worker
 * is deployed. One level is enough, since all of them have relaxed SIMD and none has threads.
 */
export async function default_wasm(_level: Level | "webgpu"): Promise<WebAssembly.Module> {
  return relaxed;
}
