import { VitMsnError } from "../../errors.ts";
import { is_for_webgpu } from "./load_wasm.ts";
import { obstacle_to_threads } from "./simd_level.ts";
import { has_threads } from "./wasm_engine.ts";

/**
 * Why an engine from the caller's WebAssembly isn't faster.
 * @throws VitMsnError INVALID_ARGUMENT if it is the WebGPU engine's.
 */
export function reasons_of_given(module: WebAssembly.Module, num_threads: number): string[] {
  if (is_for_webgpu(module)) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      'The passed WebAssembly is the WebGPU engine\'s, which needs device "webgpu" or a GPU for "auto".',
    );
  }
  const obstacle = obstacle_to_threads(num_threads);
  const passed = "The engine's WebAssembly was passed (env.wasm)";
  if (obstacle !== undefined) return [`${passed}.`, obstacle];
  if (has_threads(module)) return [`${passed}.`];
  return [`${passed} and has no threads: pass vit_msn_relaxed_threads.wasm.`];
}
