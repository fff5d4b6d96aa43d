import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { is_error } from "../is_a.ts";
import { create_engine } from "./create_engine.ts";
import type { EngineOptions, StartedEngine } from "./engine_options.ts";
import { load_wasm_module } from "./wasm/load_wasm.ts";
import { must_not_block } from "./wasm/simd_level.ts";

/** With software Vulkan, one Deno 2.9 process in ten crashed here after a Worker had requested an adapter. */
const NOT_IN_DENO =
  'Not on WebGPU: Deno may crash when a Worker ends that looked for a GPU; device "webgpu" by name takes one there.';

/**
 * Starts an engine for one model, in a Worker if that is requested or needed.
 * @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT or IO.
 */
export async function open_engine(options: EngineOptions): Promise<StartedEngine> {
  const on_device = typeof options.device === "object";
  const { worker = !on_device && must_not_block(options.num_threads ?? 1) } = options;
  if (!worker) return create_engine(options);
  if (on_device) {
    throw new VitMsnError("INVALID_ARGUMENT", "A GPUDevice can't be passed to a Worker: omit worker.");
  }
  const wasm = options.wasm ?? env.wasm;
  try {
    const { start_worker_engine } = await import("#worker_engine");
    const { device = "auto", num_threads, cache_dir } = options;
    const stays_on_cpu = device === "auto" && "Deno" in globalThis;
    const started = await start_worker_engine({
      device: stays_on_cpu ? "wasm" : device,
      num_threads,
      cache_dir,
      // Of the allowed types, only a module can be posted to every Worker.
      wasm: wasm && (await load_wasm_module(wasm)),
    });
    return stays_on_cpu ? with_reason(started, NOT_IN_DENO) : started;
  } catch (error) {
    if (error instanceof VitMsnError) throw error;
    const reason = is_error(error) ? error.message : String(error);
    return without_worker(options, `The engine can't run in a Worker here: ${reason}.`);
  }
}

function with_reason(started: StartedEngine, reason: string): StartedEngine {
  const { engine_info } = started;
  return {
    ...started,
    engine_info: Object.freeze({ ...engine_info, reasons: Object.freeze([reason, ...engine_info.reasons]) }),
  };
}

async function without_worker(options: EngineOptions, reason: string): Promise<StartedEngine> {
  if (options.worker) env.warn(`vit-msn: worker is true, but the model runs on this thread. ${reason}`);
  return with_reason(await create_engine(options), reason);
}
