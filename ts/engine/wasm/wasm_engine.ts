import type { FloatDtype } from "../../dtypes.ts";
import { type ErrorCode, VitMsnError } from "../../errors.ts";
import { is_error } from "../../is_a.ts";
import { bytes_of } from "../../options.ts";
import type { EngineMemory, Handle, LinearHandle, TensorHandle } from "../engine.ts";
import { engine_dead, engine_disposed, engine_not_started } from "../engine_errors.ts";
import type { ByteDot, Level } from "../engine_info.ts";
import { ForwardQueue } from "../forward_queue.ts";
import create_glue from "../generated/glue.js";
import type { Dropout, TrainingEngine } from "../training_engine.ts";
import { type Glue, type GlueOps, run_op } from "./glue_ops.ts";
import type { ThreadPool } from "./thread_pool.ts";

/** What ended an engine, whose memory can no longer be trusted. */
interface Fate {
  /** A trap, or the loss of a thread. */
  fault: string | undefined;
  /** A sentence that describes how its device was lost. */
  lost: string | undefined;
}

/** Ends the threads of an engine that was garbage-collected. */
const forgotten = new FinalizationRegistry<ThreadPool>((pool) => void pool.dispose());

/** Whether a module was built for threads: such modules import their memory. */
export function has_threads(module: WebAssembly.Module): boolean {
  return WebAssembly.Module.imports(module).some(({ kind }) => kind === "memory");
}

function level_of(glue: Glue, module: WebAssembly.Module): Level {
  return `${glue.simd_level() as "simd128" | "relaxed" | "relaxed-wide"}${has_threads(module) ? "+threads" : ""}`;
}

const NO_DROPOUT: Dropout = { probability: 0, seed: 0 };

/** Starts a new WebAssembly instance of the compiled module. */
export function create_wasm_engine(module: WebAssembly.Module): WasmEngine {
  const glue = create_glue();
  let memory: WebAssembly.Memory;
  try {
    // The glue creates the shared memory of a module with threads. Other modules have their own memory and ignore this
    // stand-in, because a real memory would reserve 10 GiB of address space in Node.
    const unused = has_threads(module) ? undefined : ({} as WebAssembly.Memory);
    memory = glue.initSync({ module, memory: unused }).memory;
  } catch (cause) {
    throw engine_not_started(cause);
  }
  return new WasmEngine(glue, module, memory);
}

/** The ops that need no code here. */
export interface WasmEngine extends GlueOps {
  /** How the processor multiplies bytes; only the CPU's binaries export it. */
  byte_dot(): ByteDot;
}

/**
 * The CPU engine, and what the WebGPU engine shares with it: every call goes straight to WebAssembly, and every failure
 * becomes a VitMsnError. Every export with an op's name becomes a method, unless the class defines it.
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the constructor adds the methods of GlueOps.
export class WasmEngine implements TrainingEngine {
  readonly level: Level | "webgpu";
  readonly forward_queue = new ForwardQueue();
  readonly #module: WebAssembly.Module;
  #glue: Glue | undefined;
  #memory: WebAssembly.Memory | undefined;
  #pool: ThreadPool | undefined;
  /**
   * Shared with threads and devices, so that they don't reference the engine itself, which can be garbage-collected.
   */
  protected readonly fate: Fate = { fault: undefined, lost: undefined };

  constructor(
    glue: Glue,
    module: WebAssembly.Module,
    memory: WebAssembly.Memory,
    level: Level | "webgpu" = level_of(glue, module),
  ) {
    this.level = level;
    this.#glue = glue;
    this.#module = module;
    this.#memory = memory;
    for (const name of Object.keys(glue) as (keyof Glue)[]) {
      const op = (...args: unknown[]) => this.call((glue) => run_op(glue, name, args));
      if (!(name in this)) Object.assign(this, { [name]: op });
    }
  }

  /**
   * Starts workers, which share this engine's work from then on. The module must be built for threads.
   * @throws Error with the reason if they can't start; the engine then works without them.
   */
  async start_workers(count: number): Promise<void> {
    const { ThreadPool } = await import("./thread_pool.ts");
    const start = { module: this.#module, memory: this.#memory as WebAssembly.Memory };
    const [fate, glue] = [this.fate, this.#glue as Glue];
    const dismiss = () => glue.dismiss_workers();
    const pool = await ThreadPool.start(count, start, glue.epoch_address(), dismiss, (reason) => {
      fate.fault ??= `one of its threads was lost: ${reason}.`;
    });
    // Node 20 has no navigator.
    glue.set_thread_per_core(count < (globalThis.navigator?.hardwareConcurrency ?? 0));
    this.#pool = pool;
    forgotten.register(this, pool, pool);
  }

  tensor(data: Float32Array, dims: readonly number[]): TensorHandle {
    bytes_of(data, "A tensor");
    return this.call((glue) => glue.tensor(data, Uint32Array.from(dims))) as TensorHandle;
  }

  parameter(bytes: Uint8Array, from: FloatDtype, dtype: FloatDtype, dims: readonly number[]): TensorHandle {
    bytes_of(bytes, "A parameter");
    return this.call((glue) => glue.parameter(bytes, from, dtype, Uint32Array.from(dims))) as TensorHandle;
  }

  async parameter_bytes(parameter: TensorHandle, dtype: FloatDtype): Promise<Uint8Array> {
    return this.copy((glue) => glue.parameter_bytes(parameter, dtype));
  }

  set_rows(weights: LinearHandle, row: number, bytes: Uint8Array, from: FloatDtype): void {
    bytes_of(bytes, "A parameter");
    this.call((glue) => glue.set_rows(weights, row, bytes, from));
  }

  set_quantised_rows(weights: LinearHandle, row: number, bytes: Uint8Array, scales: Uint8Array): void {
    bytes_of(bytes, "A parameter");
    this.call((glue) => glue.set_quantised_rows(weights, row, bytes, scales));
  }

  set_bias(weights: LinearHandle, offset: number, bytes: Uint8Array, from: FloatDtype): void {
    bytes_of(bytes, "A parameter");
    this.call((glue) => glue.set_bias(weights, offset, bytes, from));
  }

  async get_rows(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array> {
    return this.copy((glue) => glue.get_rows(weights, row, rows));
  }

  async get_scales(weights: LinearHandle, row: number, rows: number): Promise<Uint8Array> {
    return this.copy((glue) => glue.get_scales(weights, row, rows));
  }

  async get_bias(weights: LinearHandle, offset: number, count: number): Promise<Uint8Array> {
    return this.copy((glue) => glue.get_bias(weights, offset, count));
  }

  eager_attention_backward(
    grad: TensorHandle,
    qkv: TensorHandle,
    probs: TensorHandle,
    num_heads: number,
    { probability, seed }: Dropout = NO_DROPOUT,
  ): TensorHandle {
    return this.call((glue) =>
      glue.eager_attention_backward(grad, qkv, probs, num_heads, probability, seed),
    ) as TensorHandle;
  }

  dims(x: TensorHandle): number[] {
    return Array.from(this.call((glue) => glue.dims(x)));
  }

  /** Ops are done when they return. */
  async ready(): Promise<void> {}

  async caught_up(): Promise<void> {}

  async read(x: TensorHandle): Promise<Float32Array> {
    return this.copy((glue) => glue.read(x));
  }

  /** Freeing a handle of a disposed or dead engine is not an error, because clean-up may run after either. */
  free(handle: Handle): void {
    if (this.#glue === undefined || this.death() !== undefined) return;
    this.call((glue) => glue.free(handle));
  }

  memory(): EngineMemory {
    const [handles, bytes] = this.call((glue) => glue.live()) as unknown as [number, number];
    return { handles, bytes, reserved: this.reserved() };
  }

  /** The total of reserved bytes. */
  protected reserved(): number {
    return this.#memory?.buffer.byteLength ?? 0;
  }

  /** Drops the instance, which is the only way to return its memory: WebAssembly memory never shrinks. */
  async dispose(): Promise<void> {
    const pool = this.#pool;
    this.#glue = undefined;
    this.#memory = undefined;
    this.#pool = undefined; // it references the instance, too
    if (pool === undefined) return;
    forgotten.unregister(pool);
    await pool.dispose();
  }

  /** Runs ops of the instance, and turns their errors into VitMsnErrors. */
  protected call<T>(op: (glue: Glue) => T): T {
    if (this.#glue === undefined) throw engine_disposed();
    const death = this.death();
    if (death !== undefined) throw death;
    this.#pool?.wake();
    try {
      return op(this.#glue);
    } catch (error) {
      throw this.#translate(error, this.#glue);
    }
  }

  /** Calls an export that copies values out. A GPU's values arrive later, and so do the errors of the ops before. */
  protected async copy<T>(op: (glue: Glue) => T | Promise<T>): Promise<T> {
    const glue = this.#glue;
    try {
      return await this.call(op);
    } catch (error) {
      if (this.#glue === undefined) throw engine_disposed();
      throw error instanceof VitMsnError ? error : this.#translate(error, glue as Glue);
    }
  }

  /** Errors of the kernels have a code; anything else is a trap, after which this engine isn't used again. */
  #translate(error: unknown, glue: Glue): VitMsnError {
    const code = (error as { code?: ErrorCode } | null)?.code;
    const has_code = is_error(error) && typeof code === "string";
    if (has_code && code !== "ENGINE_DEAD") return new VitMsnError(code, error.message);
    if (has_code) this.fate.lost ??= error.message;
    else this.fate.fault ??= panic_message(glue) ?? String(error);
    return this.death(error) as VitMsnError;
  }

  /** The error of every call once the engine has ended. */
  protected death(cause?: unknown): VitMsnError | undefined {
    const { lost, fault } = this.fate;
    if (lost !== undefined) return new VitMsnError("ENGINE_DEAD", lost, { cause });
    return fault === undefined ? undefined : engine_dead(fault, cause);
  }
}

/** The message that the panic hook stored, if the instance can still return it after the trap. */
function panic_message(glue: Glue): string | undefined {
  try {
    return glue.last_panic();
  } catch {
    return undefined;
  }
}
