import type { Level } from "../engine_info.ts";
import engine from "../vit_msn_relaxed.wasm";

/**
 * The engine's module for edge workers, which may not compile bytes: it is imported, and so compiled when the worker is
 * deployed. Each edge bundle has one level (scripts/bundle.mjs) and no threads, which no edge runtime has.
 */
export async function default_wasm(_level: Level | "webgpu"): Promise<WebAssembly.Module> {
  return engine;
}
