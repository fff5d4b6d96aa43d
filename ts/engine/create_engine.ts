import { find_gpu, HOW_TO_GET_WEBGPU } from "#gpu";
import { load_webgpu } from "#webgpu";
import { find_wide } from "#wide";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { is_error } from "../is_a.ts";
import { on_demand } from "../on_demand.ts";
import type { EngineOptions, StartedEngine } from "./engine_options.ts";
import { is_for_webgpu, load_wasm_module, type WasmInput } from "./wasm/load_wasm.ts";
import { choose_level, obstacle_to_threads } from "./wasm/simd_level.ts";
import { create_wasm_engine, has_threads, type WasmEngine } from "./wasm/wasm_engine.ts";
import type { WideChoice } from "./wasm/wide_types.ts";
import type { StartedWebGpu } from "./webgpu/start_webgpu.ts";

/** The engine has no use for more. */
const MAX_THREADS = 64;

/**
 * Starts an engine for one model: disposing it returns all its memory, and a fault in it affects no other model.
 * @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT, OUT_OF_MEMORY or IO.
 */
export async function create_engine(options: EngineOptions): Promise<StartedEngine> {
  const { device = "auto", num_threads = 1, cache_dir } = options;
  if (typeof WebAssembly === "undefined") {
    throw new VitMsnError(
      "UNSUPPORTED",
      "This runtime has no WebAssembly, which the engine needs: start Node without --jitless.",
    );
  }
  const given = options.wasm ?? env.wasm;
  if (device === "wasm") return start_on_cpu(given, num_threads, []);
  if (device !== "auto") return start_webgpu(device, given, cache_dir);
  // Compiled once: a Response can't be read twice.
  const module = given && (await load_wasm_module(given));
  const started = await try_webgpu(module, cache_dir);
  return typeof started === "string" ? start_on_cpu(module, num_threads, [started]) : started;
}

/** Starts on WebGPU, whose code is loaded only if the runtime has WebGPU. */
async function start_webgpu(
  device: "webgpu" | "auto" | GPUDevice,
  given: WasmInput | undefined,
  cache_dir: string | undefined,
): Promise<StartedWebGpu> {
  if (typeof device !== "object" && !(env.webgpu.gpu ?? (await find_gpu(device === "auto")))) {
    throw new VitMsnError("UNSUPPORTED", `This runtime has no WebGPU. ${HOW_TO_GET_WEBGPU}`);
  }
  const { start_webgpu } = await on_demand("WebGPU engine", load_webgpu);
  return start_webgpu(device, given, cache_dir);
}

/** An engine on WebGPU if "auto" should choose it, else a sentence with the reason. */
async function try_webgpu(
  given: WebAssembly.Module | undefined,
  cache_dir: string | undefined,
): Promise<StartedWebGpu | string> {
  if (given && !is_for_webgpu(given)) return "Not on WebGPU: the CPU engine's WebAssembly was passed.";
  try {
    return await start_webgpu("auto", given, cache_dir);
  } catch (error) {
    if (error instanceof VitMsnError) return `Not on WebGPU: ${error.message}`;
    throw error;
  }
}

async function start_on_cpu(
  given: WasmInput | undefined,
  wanted: number,
  not_on_webgpu: string[],
): Promise<StartedEngine> {
  const num_threads = Math.min(wanted, MAX_THREADS);
  const choice = choose_level(num_threads);
  const ordinary = await load_wasm_module(given, choice.level);
  const on_given = given && (await import("./wasm/given_wasm.ts")).reasons_of_given(ordinary, num_threads);
  const reasons = on_given ?? choice.reasons;
  const { module = ordinary, not_wide = [] }: WideChoice = given
    ? {}
    : await find_wide(choice.level, ordinary);
  const engine = create_wasm_engine(module);
  const may_share = obstacle_to_threads(num_threads) === undefined && has_threads(module);
  if (num_threads < wanted) reasons.push(`The engine uses up to ${MAX_THREADS} threads.`);
  const threads = may_share ? await start_threads(engine, num_threads, reasons) : 1;
  const engine_info = Object.freeze({
    level: engine.level,
    threads,
    worker: false,
    byte_dot: engine.byte_dot(),
    reasons: Object.freeze([...not_on_webgpu, ...reasons, ...not_wide]),
  });
  if (threads < wanted) {
    env.warn(`vit-msn: num_threads is ${wanted}, but the model runs on ${threads}. ${reasons.join(" ")}`);
  }
  return { engine, device: "wasm", engine_info };
}

/** Starts the threads and returns their number: 1 if workers can't start. */
async function start_threads(engine: WasmEngine, num_threads: number, reasons: string[]): Promise<number> {
  try {
    await engine.start_workers(num_threads - 1);
    return num_threads;
  } catch (error) {
    reasons.push(`Workers can't start here: ${is_error(error) ? error.message : String(error)}.`);
    return 1;
  }
}
