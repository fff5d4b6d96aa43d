import { numel } from "../dims.ts";
import { BYTES_PER_ELEMENT, type FloatDtype, type WeightDtype } from "../dtypes.ts";
import type { Engine, Handle, LinearHandle, TensorHandle } from "../engine/engine.ts";
import { Pacer } from "../engine/pacer.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import type { CheckpointTensor } from "../loading/types.ts";
import { on_demand } from "../on_demand.ts";
import type { LinearPart, LinearSpec, ModuleSpec, ParameterSpec } from "./architecture.ts";
import type { FoundIntegers, FoundTensor } from "./checkpoint_match.ts";

/** Bytes moved at a time between a file and the engine: few calls, and no second copy of a large weight. */
const CHUNK_BYTES = 4 << 20;
/** Random values are slow: this many bytes block a page for about 10 ms. */
const FRESH_CHUNK_BYTES = 512 << 10;
const LOADING = "Loading the model";

/** A model's parameters on the engine, by their canonical names. */
export class Weights {
  readonly modules: readonly ModuleSpec[];
  readonly dtype: WeightDtype;
  readonly engine: Engine;
  readonly #handles: Map<string, Handle>;

  constructor(
    engine: Engine,
    modules: readonly ModuleSpec[],
    dtype: WeightDtype,
    handles: Map<string, Handle>,
  ) {
    this.engine = engine;
    this.modules = modules;
    this.dtype = dtype;
    this.#handles = handles;
  }

  /** A parameter that isn't part of a linear layer. */
  tensor(key: string): TensorHandle {
    return this.#handles.get(key) as TensorHandle;
  }

  /** A linear layer by its name in the architecture. */
  linear(name: string): LinearHandle {
    return this.#handles.get(name) as LinearHandle;
  }

  /** Some of the modules, on the same engine. */
  part(modules: readonly ModuleSpec[]): Weights {
    return new Weights(this.engine, modules, this.dtype, this.#handles);
  }

  has(name: string): boolean {
    return this.#handles.has(name);
  }

  /** Replaces a module's handle and frees the old one. */
  replace(name: string, handle: Handle): void {
    this.engine.free(this.#handles.get(name) as Handle);
    this.#handles.set(name, handle);
  }

  /**
   * A union with other modules of the same engine. The sets stay independent: replacing a module in one doesn't affect
   * the others.
   */
  with(other: Weights): Weights {
    const handles = new Map([...this.#handles, ...other.#handles]);
    return new Weights(this.engine, [...this.modules, ...other.modules], this.dtype, handles);
  }

  /** Frees every module. */
  free(): void {
    for (const handle of this.#handles.values()) this.engine.free(handle);
    this.#handles.clear();
  }

  /** Replaces all modules by those of another set of weights of the same architecture and engine. */
  adopt(other: Weights): void {
    for (const [name, handle] of other.#handles) this.replace(name, handle);
  }

  /** The bytes of a linear layer's weight and bias in memory. */
  linear_bytes(handle: LinearHandle): number {
    const module = this.modules.find(
      (module): module is LinearSpec => module.kind === "linear" && this.linear(module.name) === handle,
    );
    if (module === undefined) return 0;
    const { in_features, out_features } = module;
    const dtype = linear_dtype(module, this.dtype);
    const scales = dtype === "int8" ? BYTES_PER_ELEMENT.float32 : 0;
    const row = in_features * BYTES_PER_ELEMENT[dtype] + BYTES_PER_ELEMENT[float_dtype(dtype)] + scales;
    return out_features * row;
  }
}

/** The dtype of everything but the int8 weights of an int8 model is float32. */
export function float_dtype(dtype: WeightDtype): FloatDtype {
  return dtype === "int8" ? "float32" : dtype;
}

/** The dtype of a layer's weight in a model of `dtype`. */
export function linear_dtype(module: LinearSpec, dtype: WeightDtype): WeightDtype {
  return module.quantisable ? dtype : float_dtype(dtype);
}

export interface FillOptions {
  seed: number;
  initializer_range: number;
  signal?: AbortSignal | undefined;
}

/** Allocates every module on the engine and fills it: from the checkpoint if it has the key, else newly initialised. */
export async function create_weights(
  engine: Engine,
  modules: readonly ModuleSpec[],
  dtype: WeightDtype,
  found: ReadonlyMap<string, FoundTensor>,
  options: FillOptions,
): Promise<Weights> {
  const handles = new Map<string, Handle>();
  const filler = new Filler(engine, dtype, found, options);
  for (const module of modules) {
    const name = module.kind === "tensor" ? module.key : module.name;
    handles.set(name, await (module.kind === "tensor" ? filler.tensor(module) : filler.linear(module)));
  }
  await filler.finish();
  return new Weights(engine, modules, dtype, handles);
}

class Filler {
  readonly #engine: Engine;
  readonly #dtype: WeightDtype;
  readonly #found: ReadonlyMap<string, FoundTensor>;
  readonly #options: FillOptions;
  readonly #pacer: Pacer;

  constructor(
    engine: Engine,
    dtype: WeightDtype,
    found: ReadonlyMap<string, FoundTensor>,
    options: FillOptions,
  ) {
    this.#engine = engine;
    this.#dtype = dtype;
    this.#found = found;
    this.#options = options;
    this.#pacer = new Pacer(options.signal, LOADING);
  }

  async tensor(spec: ParameterSpec): Promise<TensorHandle> {
    const found = this.#found.get(spec.key);
    const { dims } = found?.tensor ?? spec;
    const { bytes, dtype } = await this.#values(spec, 0, numel(dims));
    const handle = await this.#located(spec, () =>
      this.#engine.parameter(bytes, dtype, float_dtype(this.#dtype), dims),
    );
    await this.#done(spec, handle);
    return found?.resize?.(this.#engine, handle) ?? handle;
  }

  /** Resolves when the engine has received everything. */
  finish(): Promise<void> {
    return this.#pacer.finish();
  }

  async linear(module: LinearSpec): Promise<LinearHandle> {
    const has_bias = module.parts.some(({ bias }) => bias !== undefined);
    const dtype = linear_dtype(module, this.#dtype);
    const handle = this.#engine.linear_weights(module.out_features, module.in_features, dtype, has_bias);
    for (const part of module.parts) {
      const { row, rows, weight, bias } = part;
      const source = this.#found.get(weight.key);
      const step = source
        ? rows_per_chunk(module.in_features, source.dtype)
        : rows_per_chunk(module.in_features, "float32", FRESH_CHUNK_BYTES);
      for (let done = 0; done < rows; done += step) {
        const chunk = { done, taken: Math.min(step, rows - done), in_features: module.in_features };
        if (source?.dtype === "int8") await this.#quantised_rows(handle, part, source, chunk);
        else await this.#rows(handle, part, chunk);
        await this.#done(weight, handle);
      }
      if (bias) {
        const { bytes, dtype } = await this.#values(bias, 0, rows);
        await this.#located(bias, () => this.#engine.set_bias(handle, row, bytes, dtype));
        await this.#done(bias, handle);
      }
    }
    return handle;
  }

  async #rows(handle: LinearHandle, { row, weight }: LinearPart, chunk: RowChunk): Promise<void> {
    const { done, taken, in_features } = chunk;
    const { bytes, dtype } = await this.#values(weight, done * in_features, taken * in_features);
    await this.#located(weight, () => this.#engine.set_rows(handle, row + done, bytes, dtype));
  }

  async #quantised_rows(
    handle: LinearHandle,
    { row, weight }: LinearPart,
    { tensor, scale }: FoundIntegers,
    { done, taken, in_features }: RowChunk,
  ): Promise<void> {
    throw_if_aborted(this.#options.signal, LOADING);
    const width = BYTES_PER_ELEMENT.float32;
    const scales = await scale.read(done * width, taken * width);
    const { check_scales } = await on_demand("reader of int8", () => import("./int8_checkpoint.ts"));
    check_scales(scale, scales, done);
    const bytes = await tensor.read(done * in_features, taken * in_features);
    await this.#located(weight, () => this.#engine.set_quantised_rows(handle, row + done, bytes, scales));
  }

  /** Elements [start, start + length) of a parameter as raw bytes of some floating-point type. */
  async #values(
    spec: ParameterSpec,
    start: number,
    length: number,
  ): Promise<{ bytes: Uint8Array; dtype: FloatDtype }> {
    throw_if_aborted(this.#options.signal, LOADING);
    const source = this.#found.get(spec.key);
    if (source === undefined || source.dtype === "int8")
      return { bytes: await this.#fresh(spec, start, length), dtype: "float32" };
    const width = BYTES_PER_ELEMENT[source.dtype];
    const bytes = await source.tensor.read(start * width, length * width);
    return { bytes, dtype: source.dtype };
  }

  /** Call after each piece: waits while too many bytes are on their way to the engine. */
  #done(spec: ParameterSpec, handle: Handle): Promise<void> {
    return this.#pacer.step(this.#located(spec, () => this.#engine.ready(handle)));
  }

  /** Adds the file and key to the engine's error about a value. */
  #located<T>(spec: ParameterSpec, action: () => T | Promise<T>): Promise<T> {
    return located(this.#found.get(spec.key)?.tensor, action);
  }

  async #fresh(spec: ParameterSpec, start: number, length: number): Promise<Uint8Array> {
    if (spec.init === "normal") {
      const { normal_values } = await on_demand("random weights", () => import("./random.ts"));
      const { seed, initializer_range } = this.#options;
      return new Uint8Array(normal_values(seed, spec.key, start, length, initializer_range).buffer);
    }
    return new Uint8Array(new Float32Array(length).fill(spec.init === "ones" ? 1 : 0).buffer);
  }
}

/** Rows [done, done + taken) of a checkpoint's weight. */
interface RowChunk {
  done: number;
  taken: number;
  in_features: number;
}

/** Adds the file and key to the engine's error about a value. */
async function located<T>(source: CheckpointTensor | undefined, action: () => T | Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (source === undefined || !(error instanceof VitMsnError) || error.code === "OUT_OF_MEMORY")
      throw error;
    throw new VitMsnError(error.code, `${source.file}: key "${source.key}": ${error.message}`, {
      cause: error,
      details: { file: source.file, key: source.key },
    });
  }
}

/** The number of a weight's rows to move at a time. */
export function rows_per_chunk(in_features: number, dtype: WeightDtype, chunk_bytes = CHUNK_BYTES): number {
  return Math.max(1, Math.floor(chunk_bytes / (in_features * BYTES_PER_ELEMENT[dtype])));
}
