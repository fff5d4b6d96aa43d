import { numel } from "../dims.ts";
import { BYTES_PER_ELEMENT, type FloatDtype } from "../dtypes.ts";
import type { Engine, TensorHandle } from "../engine/engine.ts";
import { VitMsnError } from "../errors.ts";
import type { Checkpoint, CheckpointTensor, ModelSource } from "../loading/types.ts";
import { on_demand } from "../on_demand.ts";
import { type ModuleSpec, parameters_of } from "./architecture.ts";
import { canonical_key, fused_parts, unwrapped_key } from "./checkpoint_keys.ts";
import type { ViTMSNConfig } from "./configuration_vit_msn.ts";

export const MASK_TOKEN = "embeddings.mask_token";

/** A model's parameters, and their places in a checkpoint. */
export interface Matched {
  modules: readonly ModuleSpec[];
  found: CheckpointMatch["found"];
}

/** What matching needs to know of a model class. */
interface MatchingClass {
  readonly architecture: string;
  readonly head_keys: readonly string[];
  modules(config: ViTMSNConfig, use_mask_token: boolean): ModuleSpec[];
}

/** Finds a model's parameters in a checkpoint; throws or warns if some don't fit. */
export async function match_model(
  model_class: MatchingClass,
  config: ViTMSNConfig,
  checkpoint: Checkpoint,
  files: ModelSource,
  ignore_mismatched_sizes: boolean,
): Promise<Matched> {
  const keys = [...checkpoint.tensors.keys(), ...checkpoint.unreadable.keys()].map(canonical_key);
  const modules = model_class.modules(config, keys.includes(MASK_TOKEN));
  const matched = await match_files(checkpoint, modules, config, files);
  if (matched.missing.length + matched.mismatched.length + matched.unexpected.length > 0) {
    (await judge()).judge_match(matched, files.name, model_class, ignore_mismatched_sizes);
  }
  return { modules, found: matched.found };
}

/** Like match_checkpoint; position embeddings of another image_size fit, too. */
export async function match_files(
  checkpoint: Checkpoint,
  modules: readonly ModuleSpec[],
  config: ViTMSNConfig,
  files: ModelSource,
): Promise<CheckpointMatch> {
  const match = await match_checkpoint(checkpoint, modules);
  if (match.mismatched.length === 0) return match;
  return (await judge()).accept_resized_positions(match, checkpoint, config, files);
}

function judge() {
  return on_demand("judge of checkpoints", () => import("./judge_match.ts"));
}

/** The tensors of a checkpoint that fit a model, by canonical key, and those that don't, by the checkpoint's keys. */
export interface CheckpointMatch {
  found: ReadonlyMap<string, FoundTensor>;
  missing: string[];
  unexpected: string[];
  /** Missing parameters that the checkpoint has in a dtype that can't be read. */
  unreadable: { key: string; dtype: string }[];
  mismatched: { key: string; expected: readonly number[]; found: readonly number[] }[];
}

/** A checkpoint's tensor for a parameter. */
export type FoundTensor = FoundFloats | FoundIntegers;

interface FoundFloats {
  tensor: CheckpointTensor;
  dtype: FloatDtype;
  /** Makes the parameter from the tensor, which it frees, if their shapes differ. */
  resize?(engine: Engine, tensor: TensorHandle): TensorHandle;
}

export interface FoundIntegers {
  tensor: CheckpointTensor;
  dtype: "int8";
  resize?: undefined;
  scale: CheckpointTensor;
}

/** Compares a checkpoint with a model's parameters before anything is allocated. */
export async function match_checkpoint(
  checkpoint: Checkpoint,
  modules: readonly ModuleSpec[],
): Promise<CheckpointMatch> {
  const wanted = new Map(modules.flatMap(parameters_of).map((spec) => [spec.key, spec]));
  const scales = await scales_of(checkpoint, modules);
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

/** A model's keys before those of a wrapped copy in the same file, such as a moving average. */
function bare_first(tensors: Iterable<CheckpointTensor>): CheckpointTensor[] {
  const all = [...tensors];
  return [...all.filter((tensor) => !is_wrapped(tensor)), ...all.filter(is_wrapped)];
}

function is_wrapped({ key }: CheckpointTensor): boolean {
  return unwrapped_key(key) !== key;
}

/** The tensors, with every fused one split into its parts. */
export function* unfused(tensors: Iterable<CheckpointTensor>): Generator<CheckpointTensor> {
  for (const tensor of tensors) {
    const parts = fused_parts(tensor.key);
    const [rows = 0, ...rest] = tensor.dims;
    if (parts === undefined || tensor.dtype === "int8" || rows % parts.length !== 0) yield tensor;
    else {
      const dims = [rows / parts.length, ...rest];
      const size = numel(dims) * BYTES_PER_ELEMENT[tensor.dtype];
      for (const [i, key] of parts.entries()) {
        yield { ...tensor, key, dims, read: (start, length) => tensor.read(i * size + start, length) };
      }
    }
  }
}

/** The scales of the int8 weights of linear layers, by the weights' canonical keys. */
async function scales_of(checkpoint: Checkpoint, modules: readonly ModuleSpec[]) {
  const tensors = [...checkpoint.tensors.values()];
  if (tensors.every(({ dtype }) => dtype !== "int8")) return new Map<string, CheckpointTensor>();
  const { find_scales } = await on_demand("reader of int8", () => import("./int8_checkpoint.ts"));
  return find_scales(checkpoint, modules);
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

function same_dims(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}
