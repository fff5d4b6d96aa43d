import { numel } from "../../dims.ts";
import { VitMsnError } from "../../errors.ts";
import { PickleDict } from "../../loading/formats/pickle.ts";
import { open_torch_archive, type TorchArchive } from "../../loading/formats/pytorch_bin.ts";
import { type FileSource, open_file } from "../../loading/open_file.ts";
import type { CheckpointTensor, LoadOptions, RandomAccessFile } from "../../loading/types.ts";
import { canonical_key, fused_parts } from "../../model/checkpoint_keys.ts";
import { ViTMSNConfig, type ViTMSNConfigInit } from "../../model/configuration_vit_msn.ts";
import { mismatch } from "../checkpoint.ts";
import type { Parameter } from "../parameters.ts";
import { set_values } from "../tensor_values.ts";
import type { MSNPretrainingOptions } from "./msn_arguments.ts";
import type { MSNBranch } from "./msn_branch.ts";
import type { MSNLearner } from "./msn_learner.ts";

/** DeiT's: what the original's encoders have. */
const HEAD_DIM = 64;
const [ENCODER, TARGET] = ["encoder", "target_encoder"] as const;

/** A checkpoint of the original code, opened but not read; `dispose` closes its file. */
export class OriginalMSNCheckpoint {
  /** For messages. */
  readonly name: string;
  /** The encoder's, derived from the tensors' shapes. */
  readonly config: ViTMSNConfig;
  /** The sizes of head and prototypes needed to continue from it, as far as it has them. */
  readonly options: Pick<MSNPretrainingOptions, "hidden_dim" | "output_dim" | "num_proto">;
  /** Epochs that it was trained for; undefined if it doesn't record them. */
  readonly epoch: number | undefined;
  readonly #file: RandomAccessFile;
  readonly #branches: ReadonlyMap<string, StateDict>;
  readonly #prototypes: CheckpointTensor | undefined;
  readonly #optimizer: OptimizerState | undefined;

  private constructor(file: RandomAccessFile, archive: TorchArchive, overrides: ViTMSNConfigInit) {
    const root = archive.root;
    if (!(root instanceof PickleDict)) throw invalid_checkpoint(file, "holds no dict");
    this.name = file.name;
    this.#file = file;
    this.#branches = branches_of(root, archive, file);
    this.#prototypes = archive.tensors_of(root).tensors.find(({ key }) => key === "prototypes");
    this.#optimizer = optimizer_of(root, archive);
    const epoch = root.get("epoch");
    this.epoch = Number.isSafeInteger(epoch) ? (epoch as number) : undefined;
    const dict = (this.#branches.get(TARGET) ?? this.#branches.get(ENCODER)) as StateDict;
    this.config = config_of(dict, file, overrides);
    this.options = head_options(dict, this.#prototypes);
  }

  /**
   * Opens a `.pth.tar` of facebookresearch/msn: a torch.save file with encoder, target_encoder, prototypes,
   * opt and epoch, or some of them. Nothing in it is executed.
   * @param source a path, URL, Blob or the bytes.
   * @param overrides of the config. num_attention_heads, which no shape determines, is hidden_size / 64 by
   *   default.
   * @throws VitMsnError NOT_FOUND, INVALID_CHECKPOINT, UNSUPPORTED (the format of PyTorch before 1.6),
   *   INVALID_CONFIG.
   */
  static async open(
    source: FileSource,
    overrides: ViTMSNConfigInit = {},
    options: LoadOptions = {},
  ): Promise<OriginalMSNCheckpoint> {
    const file = await open_file(source, options);
    try {
      return new OriginalMSNCheckpoint(file, await open_torch_archive(file), overrides);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Closes the file. */
  dispose(): Promise<void> {
    return this.#file.close();
  }

  /**
   * @internal Restores both branches of a learner (from the same one if there is only one), the head and
   *   prototypes if present, and the optimiser's state.
   * @throws VitMsnError CHECKPOINT_MISMATCH.
   */
  async restore(learner: MSNLearner): Promise<void> {
    const { online, target, prototypes, engine } = learner;
    const encoder = this.#branches.get(ENCODER) ?? (this.#branches.get(TARGET) as StateDict);
    await this.#fill(online, encoder, learner);
    await this.#fill(target, this.#branches.get(TARGET) ?? encoder, learner);
    if (this.#prototypes !== undefined) {
      set_values(engine, prototypes.value, await this.#read(this.#prototypes, prototypes));
    }
    if (this.#optimizer !== undefined) await this.#remember(this.#optimizer, encoder, learner);
    online.parameters.write_back();
    target.parameters.write_back();
  }

  /** Sets a branch's parameters and running statistics; a head that the file lacks is unchanged. */
  async #fill(branch: MSNBranch, dict: StateDict, { engine }: MSNLearner): Promise<void> {
    for (const parameter of branch.parameters.all) {
      const tensor = dict.find(parameter);
      if (tensor !== undefined) set_values(engine, parameter.value, await this.#read(tensor, parameter));
      else if (dict.has_head || !parameter.name.startsWith("head.")) throw this.#lacks(parameter);
    }
    for (const [name, handle] of branch.running.entries()) {
      const tensor = dict.by_key.get(name);
      const size = engine.dims(handle)[0] as number;
      if (tensor !== undefined) set_values(engine, handle, await this.#read(tensor, { name, size }));
    }
  }

  async #remember(state: OptimizerState, dict: StateDict, learner: MSNLearner): Promise<void> {
    const { online, prototypes, optimizer, prototype_optimizer } = learner;
    const order = dict.optimiser_order();
    let steps = 0;
    for (const parameter of [...online.parameters.trained, prototypes]) {
      const tensor = dict.find(parameter);
      const index = parameter === prototypes ? order.length : tensor ? order.indexOf(tensor) : -1;
      const memory = state.get(index);
      if (memory === undefined) continue;
      const done =
        typeof memory.step === "number"
          ? memory.step
          : (await this.#read(memory.step, { name: "step", size: 1 }))[0];
      steps = Math.max(steps, Math.trunc(done as number));
      const owner = parameter === prototypes ? prototype_optimizer : optimizer;
      owner.restore(parameter, [
        await this.#read(memory.exp_avg, parameter),
        await this.#read(memory.exp_avg_sq, parameter),
      ]);
    }
    optimizer.steps = steps;
    prototype_optimizer.steps = steps;
  }

  /** A tensor's values as float32. */
  async #read(
    tensor: CheckpointTensor,
    { name, size }: Pick<Parameter, "name" | "size">,
  ): Promise<Float32Array> {
    const count = numel(tensor.dims);
    if (count !== size || tensor.dtype !== "float32") {
      throw mismatch(
        `${this.name}: ${tensor.key} is ${tensor.dtype} [${tensor.dims.join(", ")}], but ${name} has ${size} float32 values. ` +
          "Use the checkpoint's own config and options.",
      );
    }
    const values = new Float32Array((await tensor.read(0, 4 * count)).slice().buffer);
    if (values.every(Number.isFinite)) return values;
    throw invalid_checkpoint(this.#file, `has values in ${tensor.key} that aren't finite`);
  }

  #lacks({ name }: Parameter): VitMsnError {
    return mismatch(`${this.name} has no values for ${name}, so it is a checkpoint of another model.`);
  }
}

/** One branch's tensors. */
class StateDict {
  /** By canonical key; query, key and value are fused under the query's. */
  readonly by_key: ReadonlyMap<string, CheckpointTensor>;
  readonly has_head: boolean;
  readonly #tensors: readonly CheckpointTensor[];

  constructor(tensors: readonly CheckpointTensor[]) {
    this.#tensors = tensors;
    this.by_key = new Map(
      tensors.map((tensor) => [fused_parts(tensor.key)?.[0] ?? canonical_key(tensor.key), tensor]),
    );
    this.has_head = this.by_key.has("head.fc1.weight");
  }

  find({ specs }: Parameter): CheckpointTensor | undefined {
    return this.by_key.get((specs[0] as { key: string }).key);
  }

  /** The parameters in the order in which the original's optimiser numbers them; prototypes follow. */
  optimiser_order(): CheckpointTensor[] {
    const parameters = this.#tensors.filter(({ key }) => !/\.running_(?:mean|var)$/.test(key));
    const is_decayed = ({ key, dims }: CheckpointTensor) =>
      !key.includes("bias") && !key.includes("bn") && dims.length !== 1;
    return [...parameters.filter(is_decayed), ...parameters.filter((one) => !is_decayed(one))];
  }
}

function branches_of(
  root: PickleDict,
  archive: TorchArchive,
  file: RandomAccessFile,
): Map<string, StateDict> {
  const branches = new Map<string, StateDict>();
  for (const name of [ENCODER, TARGET]) {
    const dict = root.get(name);
    if (dict instanceof PickleDict) branches.set(name, new StateDict(archive.tensors_of(dict).tensors));
  }
  if (branches.size > 0) return branches;
  throw invalid_checkpoint(
    file,
    "has neither encoder nor target_encoder, so it isn't a checkpoint of the original MSN code",
  );
}

function config_of({ by_key }: StateDict, file: RandomAccessFile, overrides: ViTMSNConfigInit): ViTMSNConfig {
  const dims = (key: string) => {
    const tensor = by_key.get(key);
    if (tensor === undefined) throw invalid_checkpoint(file, `lacks the encoder's ${key}`);
    return tensor.dims as number[];
  };
  const [hidden_size = 0, num_channels = 0, patch_size = 0] = dims(
    "embeddings.patch_embeddings.projection.weight",
  );
  const side = Math.sqrt((dims("embeddings.position_embeddings")[1] ?? 0) - 1);
  const layers = [...by_key.keys()].flatMap((key) => Number(/^encoder\.layer\.(\d+)\./.exec(key)?.[1] ?? []));
  return new ViTMSNConfig({
    hidden_size,
    num_channels,
    patch_size,
    image_size: side * patch_size,
    num_hidden_layers: Math.max(-1, ...layers) + 1,
    num_attention_heads: hidden_size / HEAD_DIM,
    intermediate_size: dims("encoder.layer.0.intermediate.dense.weight")[0] ?? 0,
    qkv_bias: by_key.has("encoder.layer.0.attention.attention.query.bias"),
    ...overrides,
  });
}

function head_options(
  { by_key }: StateDict,
  prototypes: CheckpointTensor | undefined,
): OriginalMSNCheckpoint["options"] {
  const hidden_dim = by_key.get("head.fc1.weight")?.dims[0];
  const output_dim = by_key.get("head.fc3.weight")?.dims[0] ?? prototypes?.dims[1];
  const num_proto = prototypes?.dims[0];
  return {
    ...(hidden_dim !== undefined && { hidden_dim }),
    ...(output_dim !== undefined && { output_dim }),
    ...(num_proto !== undefined && { num_proto }),
  };
}

interface ParameterMemory {
  /** A tensor since PyTorch 1.12. */
  step: number | CheckpointTensor;
  exp_avg: CheckpointTensor;
  exp_avg_sq: CheckpointTensor;
}
type OptimizerState = ReadonlyMap<number, ParameterMemory>;

/** torch's AdamW state by parameter number; undefined if there is none. */
function optimizer_of(root: PickleDict, archive: TorchArchive): OptimizerState | undefined {
  const opt = root.get("opt");
  const state = opt instanceof PickleDict ? opt.get("state") : undefined;
  if (!(state instanceof PickleDict)) return undefined;
  const memories = new Map<number, ParameterMemory>();
  for (const [index, memory] of state) {
    if (!(memory instanceof PickleDict) || typeof index !== "number") continue;
    const tensors = new Map(archive.tensors_of(memory).tensors.map((tensor) => [tensor.key, tensor]));
    const [exp_avg, exp_avg_sq] = [tensors.get("exp_avg"), tensors.get("exp_avg_sq")];
    const step = memory.get("step");
    if (!exp_avg || !exp_avg_sq) continue;
    memories.set(index, {
      step: typeof step === "number" ? step : (tensors.get("step") ?? 0),
      exp_avg,
      exp_avg_sq,
    });
  }
  return memories;
}

function invalid_checkpoint(file: RandomAccessFile, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${file.name} ${what}.`, { details: { file: file.name } });
}
