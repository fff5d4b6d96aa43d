import type { Engine, Handle, LinearHandle, TensorHandle, WeightDtype } from "../engine/engine.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import type { Checkpoint, CheckpointTensor } from "../loading/types.ts";
import { type LinearSpec, type ModuleSpec, type ParameterSpec, parameters_of } from "./architecture.ts";
import { canonical_key } from "./checkpoint_keys.ts";
import { normal_values } from "./random.ts";

/** Bytes moved at a time between a file and the engine: few calls, and no second copy of a large weight. */
const CHUNK_BYTES = 4 << 20;

const BYTES_PER_ELEMENT: Record<WeightDtype, number> = { float32: 4, float16: 2, bfloat16: 2 };

/** A model's parameters on the engine, by their canonical names. */
export class Weights {
  readonly modules: readonly ModuleSpec[];
  readonly dtype: WeightDtype;
  readonly #engine: Engine;
  readonly #handles: ReadonlyMap<string, Handle>;

  constructor(
    engine: Engine,
    modules: readonly ModuleSpec[],
    dtype: WeightDtype,
    handles: ReadonlyMap<string, Handle>,
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

  has(name: string): boolean {
    return this.#handles.has(name);
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
    const dtype = this.dtype;
    return exported(spec, dtype, async function* () {
      yield engine.parameter_bytes(handle, dtype);
    });
  }

  *#export_linear(module: LinearSpec): Generator<ExportedParameter> {
    const engine = this.#engine;
    const handle = this.linear(module.name);
    for (const { row, rows, weight, bias } of module.parts) {
      const step = rows_per_chunk(module.in_features, this.dtype);
      yield exported(weight, this.dtype, async function* () {
        for (let done = 0; done < rows; done += step) {
          yield engine.get_rows(handle, row + done, Math.min(step, rows - done));
        }
      });
      if (bias) {
        yield exported(bias, this.dtype, async function* () {
          yield engine.get_bias(handle, row, rows);
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

function exported(
  spec: ParameterSpec,
  dtype: WeightDtype,
  bytes: () => AsyncGenerator<Uint8Array>,
): ExportedParameter {
  const byte_length = count(spec.dims) * BYTES_PER_ELEMENT[dtype];
  return { key: spec.key, dims: spec.dims, dtype, byte_length, bytes };
}

/** What of a checkpoint fits a model, by canonical key, and what doesn't, by the checkpoint's own keys. */
export interface CheckpointMatch {
  found: ReadonlyMap<string, CheckpointTensor>;
  missing: string[];
  unexpected: string[];
  mismatched: { key: string; expected: readonly number[]; found: readonly number[] }[];
}

/** Compares a checkpoint with a model's parameters before anything is allocated. */
export function match_checkpoint(checkpoint: Checkpoint, modules: readonly ModuleSpec[]): CheckpointMatch {
  const wanted = new Map(modules.flatMap(parameters_of).map((spec) => [spec.key, spec]));
  const found = new Map<string, CheckpointTensor>();
  const match: CheckpointMatch = { found, missing: [], unexpected: [], mismatched: [] };
  for (const tensor of checkpoint.tensors.values()) {
    const key = canonical_key(tensor.key);
    const spec = wanted.get(key);
    if (spec === undefined) match.unexpected.push(tensor.key);
    else if (found.has(key)) throw ambiguous(key, found.get(key) as CheckpointTensor, tensor);
    else {
      found.set(key, tensor);
      if (!same_dims(spec.dims, tensor.dims)) {
        match.mismatched.push({ key: tensor.key, expected: spec.dims, found: tensor.dims });
      }
    }
  }
  for (const { key } of match.mismatched) found.delete(canonical_key(key));
  const misshapen = new Set(match.mismatched.map(({ key }) => canonical_key(key)));
  match.missing = [...wanted.keys()].filter((key) => !found.has(key) && !misshapen.has(key));
  return match;
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
  found: ReadonlyMap<string, CheckpointTensor>,
  options: FillOptions,
): Promise<Weights> {
  const handles = new Map<string, Handle>();
  const filler = new Filler(engine, dtype, found, options);
  for (const module of modules) {
    const name = module.kind === "tensor" ? module.key : module.name;
    handles.set(name, await (module.kind === "tensor" ? filler.tensor(module) : filler.linear(module)));
  }
  return new Weights(engine, modules, dtype, handles);
}

class Filler {
  readonly #engine: Engine;
  readonly #dtype: WeightDtype;
  readonly #found: ReadonlyMap<string, CheckpointTensor>;
  readonly #options: FillOptions;

  constructor(
    engine: Engine,
    dtype: WeightDtype,
    found: ReadonlyMap<string, CheckpointTensor>,
    options: FillOptions,
  ) {
    this.#engine = engine;
    this.#dtype = dtype;
    this.#found = found;
    this.#options = options;
  }

  async tensor(spec: ParameterSpec): Promise<TensorHandle> {
    const { bytes, dtype } = await this.#values(spec, 0, count(spec.dims));
    return located(this.#found.get(spec.key), () =>
      this.#engine.parameter(bytes, dtype, this.#dtype, spec.dims),
    );
  }

  async linear(module: LinearSpec): Promise<LinearHandle> {
    const { in_features } = module;
    const has_bias = module.parts.some(({ bias }) => bias !== undefined);
    const handle = this.#engine.linear_weights(module.out_features, in_features, this.#dtype, has_bias);
    for (const { row, rows, weight, bias } of module.parts) {
      const step = rows_per_chunk(in_features, this.#found.get(weight.key)?.dtype ?? "float32");
      for (let done = 0; done < rows; done += step) {
        const taken = Math.min(step, rows - done);
        const { bytes, dtype } = await this.#values(weight, done * in_features, taken * in_features);
        located(this.#found.get(weight.key), () => this.#engine.set_rows(handle, row + done, bytes, dtype));
      }
      if (bias) {
        const { bytes, dtype } = await this.#values(bias, 0, rows);
        located(this.#found.get(bias.key), () => this.#engine.set_bias(handle, row, bytes, dtype));
      }
    }
    return handle;
  }

  /** Elements [start, start + length) of a parameter as raw bytes of some dtype. */
  async #values(
    spec: ParameterSpec,
    start: number,
    length: number,
  ): Promise<{ bytes: Uint8Array; dtype: WeightDtype }> {
    throw_if_aborted(this.#options.signal, "Loading the model");
    const source = this.#found.get(spec.key);
    if (source === undefined) return { bytes: this.#fresh(spec, start, length), dtype: "float32" };
    const width = BYTES_PER_ELEMENT[source.dtype];
    const bytes = await source.read(start * width, length * width);
    return { bytes, dtype: source.dtype };
  }

  #fresh(spec: ParameterSpec, start: number, length: number): Uint8Array {
    if (spec.init === "normal") {
      const { seed, initializer_range } = this.#options;
      return new Uint8Array(normal_values(seed, spec.key, start, length, initializer_range).buffer);
    }
    return new Uint8Array(new Float32Array(length).fill(spec.init === "ones" ? 1 : 0).buffer);
  }
}

/** Adds the file and key to the engine's complaint about a value. */
function located<T>(source: CheckpointTensor | undefined, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (source === undefined || !(error instanceof VitMsnError) || error.code === "OUT_OF_MEMORY")
      throw error;
    throw new VitMsnError(error.code, `${source.file}: key "${source.key}": ${error.message}`, {
      cause: error,
      details: { file: source.file, key: source.key },
    });
  }
}

function rows_per_chunk(in_features: number, dtype: WeightDtype): number {
  return Math.max(1, Math.floor(CHUNK_BYTES / (in_features * BYTES_PER_ELEMENT[dtype])));
}

function same_dims(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

function count(dims: readonly number[]): number {
  return dims.reduce((a, b) => a * b, 1);
}
