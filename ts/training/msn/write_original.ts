import type { TensorHandle } from "../../engine/engine.ts";
import type { TrainingEngine } from "../../engine/training_engine.ts";
import {
  PythonFloat,
  TorchTensor,
  type TorchValue,
  write_torch_file,
} from "../../loading/formats/write_pytorch.ts";
import type { Optimizer } from "../optimizers.ts";
import type { Parameter } from "../parameters.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";
import type { MSNBranch } from "./msn_branch.ts";
import type { MSNLearner } from "./msn_learner.ts";

export interface OriginalCheckpointContent {
  learner: MSNLearner;
  args: MSNPretrainingArguments;
  /** Whole epochs done. */
  epoch: number;
  /** The mean loss. */
  loss: number;
  /** Whether the keys begin with "module.", as those of a run on several GPUs do. */
  distributed: boolean;
}

/** Parts of a parameter's name here and in the original's encoder. */
const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^embeddings\.cls_token$/, "cls_token"],
  [/^embeddings\.position_embeddings$/, "pos_embed"],
  [/^embeddings\.patch_embeddings\.projection\./, "patch_embed.proj."],
  [/^encoder\.layer\.(\d+)\.layernorm_before\./, "blocks.$1.norm1."],
  [/^encoder\.layer\.(\d+)\.attention\.qkv\./, "blocks.$1.attn.qkv."],
  [/^encoder\.layer\.(\d+)\.attention\.output\.dense\./, "blocks.$1.attn.proj."],
  [/^encoder\.layer\.(\d+)\.layernorm_after\./, "blocks.$1.norm2."],
  [/^encoder\.layer\.(\d+)\.intermediate\.dense\./, "blocks.$1.mlp.fc1."],
  [/^encoder\.layer\.(\d+)\.output\.dense\./, "blocks.$1.mlp.fc2."],
  [/^layernorm\./, "norm."],
  [/^head\./, "fc."],
];
/** The order of modules in the original, in which its optimiser numbers their parameters. */
const ORDER = ["cls_token", "pos_embed", "patch_embed", "blocks", "norm", "fc"];
const BLOCK_ORDER = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"];
const HEAD_ORDER = ["fc1", "bn1", "fc2", "bn2", "fc3"];

/**
 * A checkpoint as save_checkpoint in msn_train.py of facebookresearch/msn writes it, which its load_checkpoint reads:
 * both encoders with their heads, prototypes, AdamW's state in the original's order, and the epoch.
 */
export function write_original_checkpoint(content: OriginalCheckpointContent): AsyncIterable<Uint8Array> {
  const { learner, args, epoch, loss, distributed } = content;
  const { engine, online, target, prototypes } = learner;
  const prefix = distributed ? "module." : "";
  const root = new Map<string, TorchValue>([
    ["encoder", state_dict(engine, online, learner.optimizer.steps, prefix)],
    ["opt", optimizer_state(learner, args)],
    ["prototypes", tensor_of(engine, prototypes.value, prototypes)],
    ["target_encoder", state_dict(engine, target, learner.optimizer.steps, prefix)],
    ["epoch", epoch],
    ["loss", new PythonFloat(loss)],
    ["batch_size", args.per_device_train_batch_size],
    ["world_size", 1],
    ["lr", new PythonFloat(args.learning_rate)],
    ["temperature", new PythonFloat(args.temperature)],
  ]);
  return write_torch_file(root);
}

function original_name(name: string): string | undefined {
  const found = NAMES.find(([pattern]) => pattern.test(name));
  return found && name.replace(found[0], found[1]);
}

/** The parameters that the original has, by its names and in its order: a mask token it hasn't. */
function ordered_parameters({ parameters }: MSNBranch): [string, Parameter][] {
  const named = parameters.all.flatMap((parameter): [string, Parameter][] => {
    const name = original_name(parameter.name);
    return name === undefined ? [] : [[name, parameter]];
  });
  return named
    .map((entry) => ({ entry, place: place_of(entry[0]) }))
    .sort((a, b) => compare(a.place, b.place))
    .map(({ entry }) => entry);
}

function place_of(name: string): number[] {
  const module = ORDER.findIndex((start) => name.startsWith(start));
  const block = /^blocks\.(\d+)\./.exec(name)?.[1];
  const parts =
    block === undefined ? HEAD_ORDER.map((part) => `fc.${part}.`) : BLOCK_ORDER.map((part) => `.${part}.`);
  const part = parts.findIndex((one) => name.includes(one));
  return [module, Number(block ?? 0), part, name.endsWith(".bias") ? 1 : 0];
}

function compare(a: readonly number[], b: readonly number[]): number {
  const first = a.findIndex((x, i) => x !== b[i]);
  return first < 0 ? 0 : (a[first] as number) - (b[first] as number);
}

function state_dict(
  engine: TrainingEngine,
  branch: MSNBranch,
  steps: number,
  prefix: string,
): ReadonlyMap<string, TorchValue> {
  const dict = new Map<string, TorchValue>();
  const running = new Map(branch.running.entries());
  for (const [name, parameter] of ordered_parameters(branch)) {
    dict.set(prefix + name, tensor_of(engine, parameter.value, parameter));
    const norm = /^fc\.(bn\d)\.bias$/.exec(name)?.[1];
    if (norm === undefined) continue;
    for (const what of ["running_mean", "running_var"]) {
      const handle = running.get(`head.${norm}.${what}`) as TensorHandle;
      dict.set(`${prefix}fc.${norm}.${what}`, tensor_of(engine, handle));
    }
    const batches = new BigInt64Array([BigInt(steps)]);
    dict.set(
      `${prefix}fc.${norm}.num_batches_tracked`,
      new TorchTensor("int64", [], () => new Uint8Array(batches.buffer)),
    );
  }
  return dict;
}

/** torch.optim.AdamW's state_dict: what decays, what doesn't, then the prototypes, numbered in this order. */
function optimizer_state(
  learner: MSNLearner,
  args: MSNPretrainingArguments,
): ReadonlyMap<string, TorchValue> {
  const parameters = ordered_parameters(learner.online);
  const decayed = parameters.filter(([, { is_decayed }]) => is_decayed);
  const others = parameters.filter(([, { is_decayed }]) => !is_decayed);
  const state = new Map<number, TorchValue>();
  for (const [index, [, parameter]] of [...decayed, ...others].entries()) {
    state.set(index, moments(learner, learner.optimizer, parameter));
  }
  state.set(parameters.length, moments(learner, learner.prototype_optimizer, learner.prototypes));
  const numbers = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i);
  const excluded: [string, TorchValue][] = [
    ["WD_exclude", true],
    ["weight_decay", 0],
  ];
  const groups = [
    group(args, numbers(0, decayed.length), [["weight_decay", new PythonFloat(args.weight_decay)]]),
    group(args, numbers(decayed.length, others.length), excluded),
    group(args, [parameters.length], [["LARS_exclude", true], ...excluded]),
  ];
  return new Map<string, TorchValue>([
    ["state", state],
    ["param_groups", groups],
  ]);
}

function group(
  { learning_rate, adam_beta1, adam_beta2, adam_epsilon }: MSNPretrainingArguments,
  params: readonly number[],
  more: readonly [string, TorchValue][],
): ReadonlyMap<string, TorchValue> {
  return new Map<string, TorchValue>([
    ["lr", new PythonFloat(learning_rate)],
    ["betas", [new PythonFloat(adam_beta1), new PythonFloat(adam_beta2)]],
    ["eps", new PythonFloat(adam_epsilon)],
    ["amsgrad", false],
    ["foreach", null],
    ["maximize", false],
    ["capturable", false],
    ["differentiable", false],
    ["fused", null],
    ...more,
    ["params", params],
  ]);
}

function moments(
  { engine }: MSNLearner,
  optimizer: Optimizer,
  parameter: Parameter,
): ReadonlyMap<string, TorchValue> {
  const [first, second] = optimizer.state(parameter) as [TensorHandle, TensorHandle];
  const step = new Uint8Array(Float32Array.of(optimizer.steps).buffer);
  return new Map<string, TorchValue>([
    ["step", new TorchTensor("float32", [], () => step)],
    ["exp_avg", tensor_of(engine, first, parameter)],
    ["exp_avg_sq", tensor_of(engine, second, parameter)],
  ]);
}

/** A tensor of the engine, in the shape that the original's parameter has. */
function tensor_of(engine: TrainingEngine, handle: TensorHandle, parameter?: Parameter): TorchTensor {
  const dims = parameter ? dims_of(parameter) : engine.dims(handle);
  return new TorchTensor("float32", dims, async () => {
    const { buffer, byteOffset, byteLength } = await engine.read(handle);
    return new Uint8Array(buffer, byteOffset, byteLength);
  });
}

/** Queries, keys and values are one, along the rows. */
function dims_of({ specs }: Parameter): readonly number[] {
  const [rows, ...rest] = (specs[0] as { dims: readonly number[] }).dims as [number, ...number[]];
  return [specs.length * rows, ...rest];
}
