import { save_files } from "#save";
import { numel } from "../dims.ts";
import type { TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { is_count } from "../is_count.ts";
import { open_checkpoint } from "../loading/checkpoint.ts";
import { read_safetensors_header } from "../loading/formats/safetensors.ts";
import { type TensorToWrite, write_safetensors } from "../loading/formats/write_safetensors.ts";
import { read_json } from "../loading/json.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { ModelSource, PretrainedSource } from "../loading/types.ts";
import { match_checkpoint } from "../model/checkpoint_match.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { create_weights } from "../model/weights.ts";
import type { OutputFolder } from "./folders/folder_types.ts";
import type { Learner } from "./learner.ts";
import type { AdaptedLayer } from "./lora.ts";
import type { Optimizer } from "./optimizers.ts";
import type { Learnable, Parameter } from "./parameters.ts";
import { set_values } from "./tensor_values.ts";
import { fresh_sums, type TrainerState } from "./trainer_state.ts";
import type { TrainingArguments } from "./training_arguments.ts";

export const STATE_FILE = "trainer_state.json";
const ARGUMENTS_FILE = "training_args.json";
const OPTIMIZER_FILE = "optimizer.safetensors";
const CHECKPOINT = /^checkpoint-(\d+)$/;
/** The key prefix of the values that learn, where the model file has others: rounded or averaged ones. */
const MASTER = "master";
/** The key prefix of the weights that adapters are merged into in the model file. */
const BASE = "base";
/** The key prefix of the moving averages of weights. */
const AVERAGE = "average";

/** The folder name of a step's checkpoint. */
export function checkpoint_name(step: number): string {
  return `checkpoint-${step}`;
}

/** The names of checkpoints, the oldest first. */
export function sort_checkpoints(names: readonly string[]): string[] {
  const steps = names.flatMap((name) => (CHECKPOINT.test(name) ? Number(CHECKPOINT.exec(name)?.[1]) : []));
  return steps.sort((a, b) => a - b).map(checkpoint_name);
}

/** The contents of a checkpoint. */
export interface CheckpointContent {
  model: ViTMSNForImageClassification;
  learner: Learner;
  state: TrainerState;
  args: TrainingArguments;
  processor: ViTImageProcessor | undefined;
}

/**
 * Writes a checkpoint: the model as save_pretrained does, the optimiser's state (and the values that learn, if the model
 * has others), the options, and last the trainer state, which marks it as complete.
 */
export async function write_checkpoint(directory: SaveDirectory, content: CheckpointContent): Promise<void> {
  const { model, learner, state, args, processor } = content;
  await learner.with_result(() => model.save_pretrained(directory));
  await processor?.save_pretrained(directory);
  await save_files(directory, {
    [OPTIMIZER_FILE]: write_safetensors(optimizer_tensors(learner), { format: "pt" }),
    [ARGUMENTS_FILE]: json(args.to_dict()),
  });
  await save_files(directory, { [STATE_FILE]: json({ ...state, optimizer_steps: learner.optimizer.steps }) });
}

export function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function* optimizer_tensors(learner: Learner): Generator<TensorToWrite> {
  const { engine, optimizer, parameters, average } = learner;
  yield* optimizer_state_tensors(engine, optimizer);
  for (const [{ name }, value] of average?.entries() ?? [])
    yield tensor_to_write(engine, `${AVERAGE}.${name}`, value);
  if (!learner.has_own_values) return;
  for (const layer of parameters.adapters?.layers ?? []) yield base_to_write(engine, layer);
  for (const parameter of parameters.trained) {
    yield tensor_to_write(engine, `${MASTER}.${parameter.name}`, parameter.value);
  }
}

/** The state of an optimiser, by "slot.parameter". */
export function* optimizer_state_tensors(
  engine: TrainingEngine,
  optimizer: Optimizer,
): Generator<TensorToWrite> {
  for (const parameter of optimizer.known()) {
    const state = optimizer.state(parameter);
    for (const [i, slot] of optimizer.slots.entries()) {
      yield tensor_to_write(engine, `${slot}.${parameter.name}`, state[i] as TensorHandle);
    }
  }
}

/** A float32 tensor of the engine, to write under a key; it is read lazily. */
export function tensor_to_write(engine: TrainingEngine, key: string, handle: TensorHandle): TensorToWrite {
  const dims = engine.dims(handle);
  return {
    key,
    dtype: "float32",
    dims,
    byte_length: 4 * numel(dims),
    bytes: (async function* () {
      const { buffer, byteOffset, byteLength } = await engine.read(handle);
      yield new Uint8Array(buffer, byteOffset, byteLength);
    })(),
  };
}

/** An adapted layer's own weight, to write; it is read lazily. */
function base_to_write(engine: TrainingEngine, { module, handle }: AdaptedLayer): TensorToWrite {
  const { name, in_features, out_features } = module;
  return {
    key: `${BASE}.${name}`,
    dtype: "float32",
    dims: [out_features, in_features],
    byte_length: 4 * out_features * in_features,
    bytes: (async function* () {
      const weight = engine.linear_weight(handle);
      try {
        const { buffer, byteOffset, byteLength } = await engine.read(weight);
        yield new Uint8Array(buffer, byteOffset, byteLength);
      } finally {
        engine.free(weight);
      }
    })(),
  };
}

/** A checkpoint that was read, but not restored yet. */
export interface LoadedCheckpoint {
  name: string;
  files: ModelSource;
  /** The options of the run that wrote it; undefined if they weren't written. */
  args: Record<string, unknown> | undefined;
  state: TrainerState;
  optimizer_steps: number;
  /** The optimiser's tensors by "slot.parameter". */
  tensors: ReadonlyMap<string, LoadedTensor>;
}

export interface LoadedTensor {
  dims: readonly number[];
  data: Float32Array;
}

/** Reads and checks a checkpoint. @throws VitMsnError INVALID_CHECKPOINT, NOT_FOUND or IO. */
export async function read_checkpoint(source: PretrainedSource): Promise<LoadedCheckpoint> {
  const files = await open_source(source);
  const { optimizer_steps, ...state } = await read_state(files);
  const args = await read_checkpoint_json(files, ARGUMENTS_FILE);
  const tensors = await read_float_tensors(files, OPTIMIZER_FILE);
  // Detects a truncated weights file before anything is changed.
  await (await open_checkpoint(files)).close();
  return { name: files.name, files, args, state, optimizer_steps, tensors };
}

async function read_state(files: ModelSource): Promise<TrainerState & { optimizer_steps: number }> {
  const state = await read_checked_state(files, "Trainer", Object.keys(fresh_sums()));
  return state as unknown as TrainerState & { optimizer_steps: number };
}

/**
 * Reads trainer_state.json and checks the fields that all kinds of training have.
 * @param writer the class that writes such a state, for messages.
 * @param sums the names of the sums in `running`.
 */
export async function read_checked_state(
  files: ModelSource,
  writer: string,
  sums: readonly string[],
): Promise<Record<string, unknown>> {
  const state = await read_checkpoint_json(files, STATE_FILE);
  if (state === undefined)
    throw invalid_checkpoint(files, `has no ${STATE_FILE}, so training can't resume from it`);
  const counts = ["global_step", "epochs_done", "batches_done", "optimizer_steps"];
  const running = is_object(state.running) ? state.running : {};
  const is_valid =
    counts.every((name) => is_count(state[name])) &&
    Number.isFinite(state.total_loss) &&
    Object.keys(running).length === sums.length &&
    sums.every((name) => Number.isFinite(running[name])) &&
    Array.isArray(state.log_history) &&
    state.log_history.every(is_log_entry) &&
    is_object(state.stateful_callbacks) &&
    is_number_or_none(state.best_metric) &&
    is_number_or_none(state.best_global_step) &&
    is_checkpoint_or_none(state.best_model_checkpoint);
  if (!is_valid)
    throw invalid_checkpoint(files, `has a ${STATE_FILE} that this package's ${writer} didn't write`);
  return state;
}

function is_log_entry(value: unknown): boolean {
  return (
    is_object(value) && Object.values(value).every((number) => typeof number === "number" || number === null)
  );
}

/** Optional: not every kind of training has these fields. */
function is_number_or_none(value: unknown): boolean {
  return value === undefined || value === null || Number.isFinite(value);
}

/** A checkpoint's name: nothing else may be opened by it. */
function is_checkpoint_or_none(value: unknown): boolean {
  return value === undefined || value === null || (typeof value === "string" && CHECKPOINT.test(value));
}

/** A JSON file of a checkpoint; undefined if there is none. @throws VitMsnError INVALID_CHECKPOINT. */
export async function read_checkpoint_json(
  files: ModelSource,
  name: string,
): Promise<Record<string, unknown> | undefined> {
  return read_json(files, name).catch((cause: unknown) => {
    if (!(cause instanceof VitMsnError) || cause.code !== "INVALID_CONFIG") throw cause;
    throw new VitMsnError("INVALID_CHECKPOINT", cause.message, { cause });
  });
}

function is_object(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/**
 * All tensors of a checkpoint's file, which must be float32 and finite. @throws VitMsnError
 * INVALID_CHECKPOINT.
 */
export async function read_float_tensors(
  files: ModelSource,
  name: string,
): Promise<Map<string, LoadedTensor>> {
  const file = await files.open(name);
  if (file === undefined) throw invalid_checkpoint(files, `has no ${name}, so training can't resume from it`);
  try {
    const tensors = new Map<string, LoadedTensor>();
    for (const { key, dtype, dims, start, end } of await read_safetensors_header(file)) {
      if (dtype !== "F32")
        throw invalid_checkpoint(files, `has a ${name} with ${key} of type ${dtype}, not F32`);
      const data = new Float32Array((await file.read(start, end - start)).slice().buffer);
      if (!data.every(Number.isFinite))
        throw invalid_checkpoint(files, `has a ${name} whose ${key} isn't finite`);
      tensors.set(key, { dims, data });
    }
    return tensors;
  } finally {
    await file.close();
  }
}

/**
 * Loads the weights of a checkpoint of the same architecture into a model.
 * @throws VitMsnError CHECKPOINT_MISMATCH and what loading throws; the model is then unchanged.
 */
export async function load_weights(model: Learnable, files: ModelSource): Promise<void> {
  const checkpoint = await open_checkpoint(files);
  try {
    const { modules, dtype } = model.weights;
    const { found, missing, mismatched } = await match_checkpoint(checkpoint, modules);
    if (missing.length > 0 || mismatched.length > 0) {
      throw new VitMsnError(
        "CHECKPOINT_MISMATCH",
        `${files.name} is a checkpoint of another model: these keys are missing or have other shapes: ${[...missing, ...mismatched.map(({ key }) => key)].slice(0, 5).join(", ")}.`,
        { details: { missing_keys: missing, mismatched_keys: mismatched } },
      );
    }
    const options = { seed: 0, initializer_range: model.config.initializer_range };
    model.weights.adopt(await create_weights(model.engine, modules, dtype, found, options));
  } finally {
    await checkpoint.close();
  }
}

/**
 * Restores a learner's optimiser, the values that learn and their averages from a checkpoint. @throws VitMsnError
 * CHECKPOINT_MISMATCH.
 */
export function restore_learner(
  learner: Learner,
  { name, tensors, optimizer_steps }: LoadedCheckpoint,
): void {
  const { engine, optimizer, parameters, average } = learner;
  const find = (key: string, parameter: Parameter) => {
    const tensor = tensors.get(key);
    if (tensor === undefined || tensor.data.length === parameter.size) return tensor?.data;
    throw mismatch(`${name} is a checkpoint of another model: ${key} has another size.`);
  };
  for (const parameter of parameters.trained) {
    const state = optimizer.slots.flatMap((slot) => find(`${slot}.${parameter.name}`, parameter) ?? []);
    if (state.length === optimizer.slots.length) optimizer.restore(parameter, state);
    else if (optimizer_steps > 0 && parameter.name !== "embeddings.mask_token") {
      throw mismatch(
        `${name} has no state of this optimiser for ${parameter.name}; resume with the same optim and frozen parameters as the run that wrote it.`,
      );
    }
    const master = find(`${MASTER}.${parameter.name}`, parameter);
    if (master !== undefined) set_values(engine, parameter.value, master);
  }
  for (const [parameter, value] of average?.entries() ?? []) {
    const averaged = find(`${AVERAGE}.${parameter.name}`, parameter);
    if (averaged !== undefined) set_values(engine, value, averaged);
  }
  restore_base(learner, name, tensors);
  optimizer.steps = optimizer_steps;
  parameters.write_back();
}

/** Gives adapted layers back their own weights: the model file has them with the adapters merged in. */
function restore_base(
  { engine, parameters }: Learner,
  name: string,
  tensors: ReadonlyMap<string, LoadedTensor>,
): void {
  const { adapters } = parameters;
  for (const layer of adapters?.layers ?? []) {
    const { out_features, in_features, name: key } = layer.module;
    const own = tensors.get(`${BASE}.${key}`);
    if (own?.data.length !== out_features * in_features)
      throw mismatch(`${name} has no weights of ${key} for its adapters; resume with the same LoRA options.`);
    const weight = engine.tensor(own.data, [out_features, in_features]);
    adapters?.set_weight(layer, weight);
    engine.free(weight);
  }
}

/** The newest checkpoint that can be read; others are skipped with a warning. */
export async function newest_readable<Loaded>(
  folder: OutputFolder,
  names: readonly string[],
  read: (source: PretrainedSource) => Promise<Loaded>,
): Promise<Loaded | undefined> {
  let failure: unknown;
  for (const name of names.toReversed()) {
    try {
      return await read(await folder.source(name));
    } catch (error) {
      if (!(error instanceof VitMsnError)) throw error;
      failure ??= error;
      env.warn(`Can't resume from ${name}: ${error.message}`);
    }
  }
  if (failure !== undefined) throw failure;
  return undefined;
}

/** Removes the oldest checkpoints beyond a limit, except those to retain. */
export async function remove_old_checkpoints(
  folder: OutputFolder,
  limit: number | undefined,
  retained: readonly (string | null)[],
): Promise<void> {
  if (limit === undefined) return;
  const names = sort_checkpoints(await folder.list());
  const spare = names.filter((name) => !retained.includes(name));
  const surplus = Math.min(spare.length, names.length - limit);
  for (const name of spare.slice(0, Math.max(0, surplus))) await folder.remove(name);
}

export function mismatch(message: string): VitMsnError {
  return new VitMsnError("CHECKPOINT_MISMATCH", message);
}

export function invalid_checkpoint(files: ModelSource, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${files.name} ${what}.`, { details: { source: files.name } });
}
