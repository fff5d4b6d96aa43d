import { save_files } from "#save";
import { numel } from "../../dims.ts";
import type { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import { open_checkpoint } from "../../loading/checkpoint.ts";
import { type TensorToWrite, write_safetensors } from "../../loading/formats/write_safetensors.ts";
import { open_source } from "../../loading/source.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { Checkpoint, ModelSource, PretrainedSource } from "../../loading/types.ts";
import {
  invalid_checkpoint,
  json,
  type LoadedTensor,
  mismatch,
  optimizer_state_tensors,
  read_checked_state,
  read_checkpoint_json,
  read_float_tensors,
  STATE_FILE,
  tensor_to_write,
} from "../checkpoint.ts";
import type { Optimizer } from "../optimizers.ts";
import type { Parameter } from "../parameters.ts";
import { set_values } from "../tensor_values.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";
import type { MSNLearner } from "./msn_learner.ts";
import { MSN_MEANS, type MSNPretrainerState } from "./msn_state.ts";

const ARGUMENTS_FILE = "pretraining_args.json";
/** Both branches except the target's encoder, and the optimisers' state. */
const TENSORS_FILE = "pretraining.safetensors";
const [ONLINE, TARGET] = ["online", "target"];

export interface MSNCheckpointContent {
  learner: MSNLearner;
  state: MSNPretrainerState;
  args: MSNPretrainingArguments;
  processor: ViTImageProcessor;
}

/**
 * Writes a checkpoint: the target's encoder as a model that from_pretrained loads, everything else needed to
 * resume in a separate file, the options, and last the trainer state, which marks it as complete.
 */
export async function write_msn_checkpoint(
  directory: SaveDirectory,
  content: MSNCheckpointContent,
): Promise<void> {
  const { learner, state, args, processor } = content;
  await learner.target.encoder.save_pretrained(directory);
  await processor.save_pretrained(directory);
  await save_files(directory, {
    [TENSORS_FILE]: write_safetensors(tensors_of(learner), { format: "pt" }),
    [ARGUMENTS_FILE]: json(args.to_dict()),
  });
  await save_files(directory, { [STATE_FILE]: json({ ...state, optimizer_steps: learner.optimizer.steps }) });
}

function* tensors_of(learner: MSNLearner): Generator<TensorToWrite> {
  const { engine, online, target, prototypes } = learner;
  const write = (key: string, handle: Parameter["value"]) => tensor_to_write(engine, key, handle);
  for (const { name, value } of online.parameters.all) yield write(`${ONLINE}.${name}`, value);
  for (const [name, handle] of online.running.entries()) yield write(`${ONLINE}.${name}`, handle);
  for (const { name, value } of head_parameters(target.parameters.all))
    yield write(`${TARGET}.${name}`, value);
  for (const [name, handle] of target.running.entries()) yield write(`${TARGET}.${name}`, handle);
  yield write(prototypes.name, prototypes.value);
  yield* optimizer_state_tensors(engine, learner.optimizer);
  yield* optimizer_state_tensors(engine, learner.prototype_optimizer);
}

function head_parameters(parameters: readonly Parameter[]): Parameter[] {
  return parameters.filter(({ name }) => name.startsWith("head."));
}

/** A checkpoint that was read, but not restored yet. */
export interface LoadedMSNCheckpoint {
  name: string;
  files: ModelSource;
  args: Record<string, unknown> | undefined;
  state: MSNPretrainerState;
  optimizer_steps: number;
  tensors: ReadonlyMap<string, LoadedTensor>;
}

/** Reads and checks a checkpoint. @throws VitMsnError INVALID_CHECKPOINT, NOT_FOUND or IO. */
export async function read_msn_checkpoint(source: PretrainedSource): Promise<LoadedMSNCheckpoint> {
  const files = await open_source(source);
  const checked = await read_checked_state(files, "MSNPretrainer", [...MSN_MEANS, "steps"]);
  const { optimizer_steps, ...state } = checked as unknown as MSNPretrainerState & {
    optimizer_steps: number;
  };
  const { prototypes_last_used: used } = state;
  if (!Array.isArray(used) || !used.every(Number.isSafeInteger))
    throw invalid_checkpoint(files, `has a ${STATE_FILE} without prototypes_last_used`);
  const args = await read_checkpoint_json(files, ARGUMENTS_FILE);
  const tensors = await read_float_tensors(files, TENSORS_FILE);
  // Detects a truncated weights file before anything is changed.
  await (await open_checkpoint(files)).close();
  return { name: files.name, files, args, state, optimizer_steps, tensors };
}

/**
 * Restores a learner from a checkpoint. @throws VitMsnError CHECKPOINT_MISMATCH; the learner may then be
 * partly restored.
 */
export async function restore_msn_learner(
  learner: MSNLearner,
  checkpoint: LoadedMSNCheckpoint,
): Promise<void> {
  const { engine, online, target, prototypes, optimizer, prototype_optimizer } = learner;
  const { name: from, tensors, files, optimizer_steps } = checkpoint;
  const set = (key: string, handle: Parameter["value"]) => {
    set_values(engine, handle, found(from, tensors, key, engine.dims(handle)));
  };
  for (const { name, value } of online.parameters.all) set(`${ONLINE}.${name}`, value);
  for (const [name, handle] of online.running.entries()) set(`${ONLINE}.${name}`, handle);
  for (const { name, value } of head_parameters(target.parameters.all)) set(`${TARGET}.${name}`, value);
  for (const [name, handle] of target.running.entries()) set(`${TARGET}.${name}`, handle);
  set(prototypes.name, prototypes.value);
  await restore_target_encoder(learner, files);
  const restore_state = (owner: Optimizer, parameter: Parameter) => {
    // A mask token has no gradient, so it has no state.
    if (!tensors.has(`${owner.slots[0]}.${parameter.name}`)) return;
    const dims = engine.dims(parameter.value);
    owner.restore(
      parameter,
      owner.slots.map((slot) => found(from, tensors, `${slot}.${parameter.name}`, dims)),
    );
  };
  for (const parameter of online.parameters.trained) restore_state(optimizer, parameter);
  restore_state(prototype_optimizer, prototypes);
  optimizer.steps = optimizer_steps;
  prototype_optimizer.steps = optimizer_steps;
  online.parameters.write_back();
  target.parameters.write_back();
}

/** The target's encoder is the checkpoint's model. */
async function restore_target_encoder({ engine, target }: MSNLearner, files: ModelSource): Promise<void> {
  const checkpoint = await open_checkpoint(files);
  try {
    const encoder = target.parameters.all.filter(({ name }) => !name.startsWith("head."));
    for (const { value, specs, size } of encoder) {
      const data = new Float32Array(size);
      let filled = 0;
      for (const { key, dims } of specs) {
        const part = await checkpoint_values(checkpoint, files.name, key, dims);
        data.set(part, filled);
        filled += part.length;
      }
      set_values(engine, value, data);
    }
  } finally {
    await checkpoint.close();
  }
}

async function checkpoint_values(
  { tensors }: Checkpoint,
  from: string,
  key: string,
  dims: readonly number[],
): Promise<Float32Array> {
  const tensor = tensors.get(key);
  if (tensor?.dtype !== "float32" || tensor.dims.join() !== dims.join()) {
    throw mismatch(`${from} is a checkpoint of another model: ${key} isn't float32 [${dims.join(", ")}].`);
  }
  const bytes = await tensor.read(0, 4 * numel(dims));
  return new Float32Array(bytes.slice().buffer);
}

function found(
  from: string,
  tensors: ReadonlyMap<string, LoadedTensor>,
  key: string,
  dims: readonly number[],
): Float32Array {
  const tensor = tensors.get(key);
  if (tensor !== undefined && tensor.dims.join() === dims.join()) return tensor.data;
  const is = tensor === undefined ? "is missing" : `is [${tensor.dims.join(", ")}]`;
  throw mismatch(
    `${from} is a checkpoint of another model or head: ${key} ${is}, expected [${dims.join(", ")}]. Resume with the same model, hidden_dim, ` +
      "output_dim and num_proto as the run that wrote it.",
  );
}
