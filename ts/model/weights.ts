import type {
  Engine,
  FloatDtype,
  Handle,
  LinearHandle,
  TensorHandle,
  WeightDtype,
} from "../engine/engine.ts";
import { Pacer } from "../engine/pacer.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { view_of } from "../loading/bytes.ts";
import type { Checkpoint, CheckpointTensor } from "../loading/types.ts";
import {
  type LinearPart,
  type LinearSpec,
  type ModuleSpec,
  type ParameterSpec,
  parameters_of,
} from "./architecture.ts";
import { canonical_key, fused_parts, unwrapped_key } from "./checkpoint_keys.ts";
import { normal_values } from "./random.ts";

/** Bytes moved at a time between a file and the engine: few calls, and no second copy of a large weight. */
const CHUNK_BYTES = 4 << 20;
/** Fresh values take their time: so many bytes at once keep a page waiting for about 10 ms. */
const FRESH_CHUNK_BYTES = 512 << 10;
const LOADING = "Loading the model";

const BYTES_PER_ELEMENT: Record<WeightDtype, number> = { float32: 4, float16: 2, bfloat16: 2, int8: 1 };
/** The scales of an int8 weight [out, in] are float32 [out] under the weight's key with this behind it. */
const SCALE_SUFFIX = "_scale";

/** A model's parameters on the engine, by their canonical names. */
export class Weights {
  readonly modules: readonly ModuleSpec[];
  readonly dtype: WeightDtype;
  readonly #engine: Engine;
  readonly #handles: Map<string, Handle>;

  constructor(
    engine: Engine,
    modules: readonly ModuleSpec[],
    dtype: WeightDtype,
    handles: Map<string, Handle>,
  ) {
    this.#engine = engine;
    this.modules = modules;
    this.dtype = dtype;
    this.#handles = handles;
  }

  /** A parameter that is kept as it is. */
  tensor(key: string): TensorHandle {
    return this.#handles.get(key) as TensorHandle;
  }

  /** A linear layer by its name in the architecture. */
  linear(name: string): LinearHandle {
    return this.#handles.get(name) as LinearHandle;
  }

  /** Some of the modules, on the same engine. */
  part(modules: readonly ModuleSpec[]): Weights {
    return new Weights(this.#engine, modules, this.dtype, this.#handles);
  }

  has(name: string): boolean {
    return this.#handles.has(name);
  }

  /** Puts another in a module's place and frees the one that was there. */
  replace(name: string, handle: Handle): void {
    this.#engine.free(this.#handles.get(name) as Handle);
    this.#handles.set(name, handle);
  }

  /** These and other modules of the same engine together; each set stays what it is, and what is replaced in one isn't in another. */
  with(other: Weights): Weights {
    const handles = new Map([...this.#handles, ...other.#handles]);
    return new Weights(this.#engine, [...this.modules, ...other.modules], this.dtype, handles);
  }

  /** Frees every module. */
  free(): void {
    for (const handle of this.#handles.values()) this.#engine.free(handle);
    this.#handles.clear();
  }

  /** Takes over all modules of another set of weights of the same architecture and engine. */
  adopt(other: Weights): void {
    for (const [name, handle] of other.#handles) this.replace(name, handle);
  }

  /** The bytes of a linear layer's weight and bias as they are kept. */
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

  /** Reads parameters back as raw values of `dtype`, in pieces, in the checkpoint's order. */
  *export(): Generator<ExportedParameter> {
    for (const module of this.modules) {
      if (module.kind === "tensor") yield this.#export_tensor(module);
      else yield* this.#export_linear(module);
    }
  }

  #export_tensor(spec: ParameterSpec): ExportedParameter {
    const handle = this.tensor(spec.key);
    const engine = this.#engine;
    const dtype = float_dtype(this.dtype);
    return exported(spec, dtype, async function* () {
      yield await engine.parameter_bytes(handle, dtype);
    });
  }

  *#export_linear(module: LinearSpec): Generator<ExportedParameter> {
    const engine = this.#engine;
    const handle = this.linear(module.name);
    const dtype = linear_dtype(module, this.dtype);
    for (const { row, rows, weight, bias } of module.parts) {
      const step = rows_per_chunk(module.in_features, dtype);
      yield exported(weight, dtype, async function* () {
        for (let done = 0; done < rows; done += step) {
          yield await engine.get_rows(handle, row + done, Math.min(step, rows - done));
        }
      });
      if (dtype === "int8") {
        yield exported({ key: weight.key + SCALE_SUFFIX, dims: [rows] }, "float32", async function* () {
          yield await engine.get_scales(handle, row, rows);
        });
      }
      if (bias) {
        yield exported(bias, float_dtype(dtype), async function* () {
          yield await engine.get_bias(handle, row, rows);
        });
      }
    }
  }
}

/** A parameter on its way into a file. */
export interface ExportedParameter {
  key: string;
  dims: readonly number[];
  dtype: WeightDtype;
  byte_length: number;
  bytes(): AsyncGenerator<Uint8Array>;
}

/** What an int8 model keeps beside its int8 weights is float32. */
function float_dtype(dtype: WeightDtype): FloatDtype {
  return dtype === "int8" ? "float32" : dtype;
}

function linear_dtype(module: LinearSpec, dtype: WeightDtype): WeightDtype {
  return module.quantisable ? dtype : float_dtype(dtype);
}

function exported(
  spec: Pick<ParameterSpec, "key" | "dims">,
  dtype: WeightDtype,
  bytes: () => AsyncGenerator<Uint8Array>,
): ExportedParameter {
  const byte_length = count(spec.dims) * BYTES_PER_ELEMENT[dtype];
  return { key: spec.key, dims: spec.dims, dtype, byte_length, bytes };
}

/** What of a checkpoint fits a model, by canonical key, and what doesn't, by the checkpoint's own keys. */
export interface CheckpointMatch {
  found: ReadonlyMap<string, FoundTensor>;
  missing: string[];
  unexpected: string[];
  /** Of the missing ones, those that are there but of a dtype that can't be read. */
  unreadable: { key: string; dtype: string }[];
  mismatched: { key: string; expected: readonly number[]; found: readonly number[] }[];
}

/** A checkpoint's tensor for a parameter. */
export type FoundTensor = FoundFloats | FoundIntegers;

interface FoundFloats {
  tensor: CheckpointTensor;
  dtype: FloatDtype;
}

interface FoundIntegers {
  tensor: CheckpointTensor;
  dtype: "int8";
  scale: CheckpointTensor;
}

/** Compares a checkpoint with a model's parameters before anything is allocated. */
export function match_checkpoint(checkpoint: Checkpoint, modules: readonly ModuleSpec[]): CheckpointMatch {
  const wanted = new Map(modules.flatMap(parameters_of).map((spec) => [spec.key, spec]));
  const scales = scales_of(checkpoint, modules);
  const found = new Map<string, FoundTensor>();
  const match: CheckpointMatch = { found, missing: [], unexpected: [], unreadable: [], mismatched: [] };
  const used = new Set(scales.values());
  for (const tensor of bare_first(unfused(checkpoint.tensors.values()))) {
    const key = canonical_key(tensor.key);
    const spec = wanted.get(key);
    const other = found.get(key)?.tensor;
    const is_copy = other !== undefined && is_wrapped(tensor) && !is_wrapped(other);
    if (spec === undefined || is_copy) {
      if (!used.has(tensor)) match.unexpected.push(tensor.key);
    } else if (other) throw ambiguous(key, other, tensor);
    else {
      found.set(key, with_scale(tensor, scales.get(key)));
      if (!same_dims(spec.dims, tensor.dims)) {
        match.mismatched.push({ key: tensor.key, expected: spec.dims, found: tensor.dims });
      }
    }
  }
  for (const { key } of match.mismatched) found.delete(canonical_key(key));
  const misshapen = new Set(match.mismatched.map(({ key }) => canonical_key(key)));
  match.missing = [...wanted.keys()].filter((key) => !found.has(key) && !misshapen.has(key));
  for (const [key, dtype] of checkpoint.unreadable) {
    if (match.missing.includes(canonical_key(key))) match.unreadable.push({ key, dtype });
  }
  return match;
}

/** A model's own keys before those of a wrapped copy beside it, an average of it, say. */
function bare_first(tensors: Iterable<CheckpointTensor>): CheckpointTensor[] {
  const all = [...tensors];
  return [...all.filter((tensor) => !is_wrapped(tensor)), ...all.filter(is_wrapped)];
}

function is_wrapped({ key }: CheckpointTensor): boolean {
  return unwrapped_key(key) !== key;
}

/** The tensors with every fused one as its parts. */
export function* unfused(tensors: Iterable<CheckpointTensor>): Generator<CheckpointTensor> {
  for (const tensor of tensors) {
    const parts = fused_parts(tensor.key);
    const [rows = 0, ...rest] = tensor.dims;
    if (parts === undefined || tensor.dtype === "int8" || rows % parts.length !== 0) yield tensor;
    else {
      const dims = [rows / parts.length, ...rest];
      const size = count(dims) * BYTES_PER_ELEMENT[tensor.dtype];
      for (const [i, key] of parts.entries()) {
        yield { ...tensor, key, dims, read: (start, length) => tensor.read(i * size + start, length) };
      }
    }
  }
}

/** The scales of the int8 weights of linear layers, by the weights' canonical keys. */
function scales_of(checkpoint: Checkpoint, modules: readonly ModuleSpec[]): Map<string, CheckpointTensor> {
  const parts = modules.flatMap((module) => (module.kind === "linear" ? module.parts : []));
  const weights = new Set(parts.map(({ weight }) => weight.key));
  const scales = new Map<string, CheckpointTensor>();
  for (const tensor of checkpoint.tensors.values()) {
    if (tensor.dtype !== "int8" || !weights.has(canonical_key(tensor.key))) continue;
    const rows = tensor.dims[0] ?? 0;
    const scale = checkpoint.tensors.get(tensor.key + SCALE_SUFFIX);
    if (scale?.dtype !== "float32" || !same_dims(scale.dims, [rows])) throw bad_scale(tensor, scale, rows);
    scales.set(canonical_key(tensor.key), scale);
  }
  return scales;
}

function bad_scale(tensor: CheckpointTensor, scale: CheckpointTensor | undefined, rows: number): VitMsnError {
  const key = tensor.key + SCALE_SUFFIX;
  const found = scale ? `but it is ${scale.dtype} [${scale.dims.join(", ")}]` : "but there is none";
  return new VitMsnError(
    "INVALID_CHECKPOINT",
    `${tensor.file}: the int8 weight "${tensor.key}" needs its scales as "${key}", float32 [${rows}], ${found}.`,
    { details: { file: tensor.file, key } },
  );
}

function with_scale(tensor: CheckpointTensor, scale: CheckpointTensor | undefined): FoundTensor {
  if (tensor.dtype !== "int8") return { tensor, dtype: tensor.dtype };
  if (scale) return { tensor, dtype: tensor.dtype, scale };
  throw new VitMsnError(
    "INVALID_CHECKPOINT",
    `${tensor.file}: key "${tensor.key}" is int8, which only the weights of linear layers can be.`,
    { details: { file: tensor.file, key: tensor.key } },
  );
}

function ambiguous(key: string, a: CheckpointTensor, b: CheckpointTensor): VitMsnError {
  return new VitMsnError(
    "INVALID_CHECKPOINT",
    `${b.file}: keys "${a.key}" and "${b.key}" both name the parameter "${key}"; keep one of them.`,
    { details: { file: b.file, keys: [a.key, b.key] } },
  );
}

export interface FillOptions {
  seed: number;
  initializer_range: number;
  signal?: AbortSignal | undefined;
}

/** Allocates every module on the engine and fills it: from the checkpoint where it has the key, else freshly. */
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

/** Every module on an engine that computes nothing: see Engine.compile_ahead. */
export function empty_weights(engine: Engine, modules: readonly ModuleSpec[], dtype: WeightDtype): Weights {
  const handles = modules.map((module): [string, Handle] => {
    if (module.kind === "tensor") {
      return [module.key, engine.tensor(new Float32Array(count(module.dims)), module.dims)];
    }
    const { name, in_features, out_features } = module;
    const has_bias = module.parts.some(({ bias }) => bias !== undefined);
    return [name, engine.linear_weights(out_features, in_features, linear_dtype(module, dtype), has_bias)];
  });
  return new Weights(engine, modules, dtype, new Map(handles));
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
    const { bytes, dtype } = await this.#values(spec, 0, count(spec.dims));
    const handle = await this.#located(spec, () =>
      this.#engine.parameter(bytes, dtype, float_dtype(this.#dtype), spec.dims),
    );
    await this.#done(spec, handle);
    return handle;
  }

  /** Resolves when the engine has taken everything. */
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
    check_scales(scale, scales, done);
    const bytes = await tensor.read(done * in_features, taken * in_features);
    await this.#located(weight, () => this.#engine.set_quantised_rows(handle, row + done, bytes, scales));
  }

  /** Elements [start, start + length) of a parameter as raw bytes of some floating type. */
  async #values(
    spec: ParameterSpec,
    start: number,
    length: number,
  ): Promise<{ bytes: Uint8Array; dtype: FloatDtype }> {
    throw_if_aborted(this.#options.signal, LOADING);
    const source = this.#found.get(spec.key);
    if (source === undefined || source.dtype === "int8")
      return { bytes: this.#fresh(spec, start, length), dtype: "float32" };
    const width = BYTES_PER_ELEMENT[source.dtype];
    const bytes = await source.tensor.read(start * width, length * width);
    return { bytes, dtype: source.dtype };
  }

  /** Call after each piece: holds the next one back while too many are on their way to the engine. */
  #done(spec: ParameterSpec, handle: Handle): Promise<void> {
    return this.#pacer.step(this.#located(spec, () => this.#engine.ready(handle)));
  }

  /** Adds the file and key to the engine's complaint about a value. */
  #located<T>(spec: ParameterSpec, action: () => T | Promise<T>): Promise<T> {
    return located(this.#found.get(spec.key)?.tensor, action);
  }

  #fresh(spec: ParameterSpec, start: number, length: number): Uint8Array {
    if (spec.init === "normal") {
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

/** The engine would refuse them too, but can't know that it is the scales' own key that is to blame. */
function check_scales(tensor: CheckpointTensor, bytes: Uint8Array, first: number): void {
  const view = view_of(bytes);
  for (let offset = 0; offset < bytes.byteLength; offset += 4) {
    const scale = view.getFloat32(offset, true);
    if (scale > 0 && scale < Number.POSITIVE_INFINITY) continue;
    throw new VitMsnError(
      "INVALID_CHECKPOINT",
      `${tensor.file}: key "${tensor.key}": element ${first + offset / 4} is ${scale}, but scales are finite and above 0.`,
      { details: { file: tensor.file, key: tensor.key } },
    );
  }
}

/** Adds the file and key to the engine's complaint about a value. */
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

function rows_per_chunk(in_features: number, dtype: WeightDtype, chunk_bytes = CHUNK_BYTES): number {
  return Math.max(1, Math.floor(chunk_bytes / (in_features * BYTES_PER_ELEMENT[dtype])));
}

function same_dims(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

function count(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}
