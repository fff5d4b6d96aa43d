import { Callable } from "../callable.ts";
import { DTYPE_ALIASES, type DtypeName, type WeightDtype } from "../dtypes.ts";
import type { Engine, EngineMemory, TileChoice } from "../engine/engine.ts";
import type { EngineInfo } from "../engine/engine_info.ts";
import type { Device, DeviceOptions } from "../engine/engine_options.ts";
import { open_engine } from "../engine/open_engine.ts";
import type { Peak, Profile } from "../engine/profile.ts";
import { invalid_argument, until_aborted, VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { open_checkpoint } from "../loading/checkpoint.ts";
import { check_pretrained, MODEL_RULES, SAVE_RULES } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { LoadOptions, PretrainedSource } from "../loading/types.ts";
import { on_demand } from "../on_demand.ts";
import { check_options, flag, type Rules, record } from "../options.ts";
import type { ModuleSpec } from "./architecture.ts";
import { MASK_TOKEN, type Matched, match_files, match_model } from "./checkpoint_match.ts";
import {
  type AttnImplementation,
  read_config,
  ViTMSNConfig,
  type ViTMSNConfigInit,
} from "./configuration_vit_msn.ts";
import { type ForwardInputs, INPUT_RULES } from "./inputs.ts";
import { LoadedEngine, type Running } from "./loaded_engine.ts";
import { create_weights, type Weights } from "./weights.ts";

/** How a model runs. */
export interface ModelOptions extends DeviceOptions {
  /**
   * The dtype of weights in memory. Half precision takes half the memory. Arithmetic stays float32, except that float16
   * models multiply in float16 on GPUs that can, and store the inputs of linear layers in float16. "int8" takes about a
   * quarter and is faster: the encoder's linear layers multiply integers, with each weight row and each input row
   * scaled by its largest value; everything else stays float32. Default "float32".
   */
  dtype?: DtypeName;
  /** "sdpa" (default) streams over keys and never materialises the N×N scores; "eager" is unfused attention. */
  attn_implementation?: AttnImplementation;
  /** Seed of parameters that the checkpoint lacks, such as a new classifier's; default 0. */
  seed?: number;
}

/** The options of from_pretrained. */
export interface PretrainedOptions extends ModelOptions, LoadOptions {
  /**
   * Overrides of config.json, such as { num_labels: 3, id2label }, or a whole ViTMSNConfig. With another image_size, the
   * position embeddings are interpolated to it.
   */
  config?: ViTMSNConfig | ViTMSNConfigInit;
  /** Initialise parameters whose shape differs from the checkpoint's instead of throwing; default false. */
  ignore_mismatched_sizes?: boolean;
}

/** The options of from_config. */
export interface FromConfigOptions extends ModelOptions {
  /** Whether to create a mask token, for bool_masked_pos; default false. */
  use_mask_token?: boolean;
}

type ModelArgs = [config: ViTMSNConfig, engine: Engine, weights: Weights, options: ResolvedOptions];

/** The static side of a model class. */
interface ModelClass<M> {
  new (...args: ModelArgs): M;
  /** The class's name in config.json; a literal, since minifiers rename classes. */
  readonly architecture: string;
  /** The architecture's parameters. */
  modules(config: ViTMSNConfig, use_mask_token: boolean): ModuleSpec[];
  /** Keys that a backbone's checkpoint lacks by design. */
  readonly head_keys: readonly string[];
}

interface ResolvedOptions {
  device: Device;
  engine_info: EngineInfo;
  /** Loads the same files again after the device was lost; undefined if they are gone. */
  load_again?: () => Promise<Running>;
  /** For a part of another model: that model's engine and weights, and the part's modules. */
  part?: { of: LoadedEngine; modules: readonly ModuleSpec[] };
  dtype: WeightDtype;
  attn_implementation: AttnImplementation;
}

/** The options that apply before an engine runs. */
type RequestedOptions = Pick<ResolvedOptions, "dtype" | "attn_implementation">;

/** What ViTMSNModel and ViTMSNForImageClassification share: loading, saving and disposal. */
export abstract class PreTrainedModel<Inputs extends ForwardInputs, Output> extends Callable<
  [Inputs],
  Promise<Output>
> {
  /** The model's configuration. */
  readonly config: ViTMSNConfig;
  /** The dtype of its weights. */
  readonly dtype: WeightDtype;
  readonly attn_implementation: AttnImplementation;
  readonly #loaded: LoadedEngine;
  /** Its modules, if it shares another model's weights. */
  readonly #modules: readonly ModuleSpec[] | undefined;

  static readonly architecture: string = "PreTrainedModel";
  static readonly head_keys: readonly string[] = [];

  static modules(_config: ViTMSNConfig, _use_mask_token: boolean): ModuleSpec[] {
    throw new VitMsnError("UNSUPPORTED", "Use ViTMSNModel or ViTMSNForImageClassification.");
  }

  /** The key of a parameter in this class's checkpoints. */
  static checkpoint_key(key: string): string {
    return key;
  }

  /** @internal Use from_pretrained or from_config. */
  constructor(config: ViTMSNConfig, engine: Engine, weights: Weights, options: ResolvedOptions) {
    super();
    // In Python a config alone makes a model.
    if (options === undefined) {
      const { name } = new.target;
      throw invalid_argument(
        `new ${name}() can't be called directly: use ${name}.from_pretrained(source) or ${name}.from_config(config).`,
      );
    }
    this.config = config;
    const { device, engine_info, load_again } = options;
    this.#loaded = options.part?.of ?? new LoadedEngine({ engine, weights, device, engine_info }, load_again);
    this.#modules = options.part?.modules;
    this.dtype = options.dtype;
    this.attn_implementation = options.attn_implementation;
  }

  /** Where it runs. */
  get device(): Device {
    return this.#loaded.running.device;
  }

  /** Which engine runs it, on how many threads, and why not a faster one. */
  get engine_info(): EngineInfo {
    return this.#loaded.running.engine_info;
  }

  /** @internal */
  get engine(): Engine {
    return this.#loaded.running.engine;
  }

  /** @internal */
  get weights(): Weights {
    const { weights } = this.#loaded.running;
    return this.#modules ? weights.part(this.#modules) : weights;
  }

  abstract forward(inputs: Inputs): Promise<Output>;

  override _call(inputs: Inputs): Promise<Output> {
    return this.forward(inputs);
  }

  /**
   * Loads a model: config.json with model.safetensors (one file or an index of shards) or pytorch_model.bin.
   *
   * A backbone's checkpoint loads into a classifier too: its head is newly initialised, which env.warn reports once.
   * @param source a local folder, a hub repo id, a base URL, or the files themselves.
   * @throws VitMsnError NOT_FOUND, NETWORK, OFFLINE, ACCESS_DENIED, INVALID_CONFIG, INVALID_CHECKPOINT,
   *   CHECKPOINT_MISMATCH (all missing and misshapen keys at once), UNSUPPORTED, OUT_OF_MEMORY or ABORTED.
   */
  static async from_pretrained<M>(
    this: ModelClass<M>,
    source: PretrainedSource,
    options: PretrainedOptions = {},
  ): Promise<M> {
    check_pretrained(options);
    const resolved = resolve_options(options);
    const files = await open_source(source, options);
    const config =
      options.config instanceof ViTMSNConfig ? options.config : await read_config(files, options.config);
    // A config that doesn't fit this class is refused before weights are fetched.
    this.modules(config, false);
    const checkpoint = await open_checkpoint(files, { signal: options.signal });
    try {
      const matched = await match_model(
        this,
        config,
        checkpoint,
        files,
        options.ignore_mismatched_sizes ?? false,
      );
      const { engine, weights, ...where } = await start(this, matched, config, resolved, options);
      const load_again =
        typeof options.device === "object" || !may_reload(source)
          ? undefined
          : () => reload(this, matched.modules, config, source, resolved, options);
      const model = new this(config, engine, weights, { ...resolved, ...where, load_again });
      options.progress_callback?.({ status: "ready", name: files.name });
      return model;
    } finally {
      await checkpoint.close();
    }
  }

  /**
   * Creates a model with random weights, initialised as in the reference (linear layers from N(0, initializer_range²)).
   */
  static async from_config<M>(
    this: ModelClass<M>,
    config: ViTMSNConfig | ViTMSNConfigInit,
    options: FromConfigOptions = {},
  ): Promise<M> {
    check_options("from_config", options, MODEL_RULES, { use_mask_token: flag });
    const resolved = resolve_options(options);
    const full = config instanceof ViTMSNConfig ? config : new ViTMSNConfig(config);
    const fresh: Matched = {
      modules: this.modules(full, options.use_mask_token ?? false),
      found: new Map(),
    };
    const start_fresh = () => start(this, fresh, full, resolved, options);
    const { engine, weights, ...where } = await start_fresh();
    const load_again = typeof options.device === "object" ? undefined : start_fresh;
    return new this(full, engine, weights, { ...resolved, ...where, load_again });
  }

  /**
   * Writes config.json and model.safetensors (the hub's key layout, in the model's dtype), which from_pretrained and
   * Hugging Face transformers open. int8 has its own format (ARCHITECTURE.md), which only from_pretrained opens.
   * @param directory a folder's path; in browsers a FileSystemDirectoryHandle.
   */
  async save_pretrained(
    directory: SaveDirectory,
    options: Pick<LoadOptions, "signal" | "progress_callback"> = {},
  ): Promise<void> {
    check_options("save_pretrained", options, SAVE_RULES);
    await this.ready();
    const { save_model } = await on_demand("writing of models", () => import("./save_model.ts"));
    await save_model(this, this.constructor as typeof PreTrainedModel, directory, options);
  }

  /**
   * Runs a forward pass and reports each op's time, operations and bytes: `table()` formats them, `chrome_trace()` exports
   * them. Another forward pass runs first as a warm-up. On WebGPU the device measures times, if it has the feature
   * timestamp-query.
   * @param options.peak the machine's peak performance, for shares of the roofline.
   * @throws VitMsnError like forward.
   */
  async profile(inputs: Inputs, options: { peak?: Peak } = {}): Promise<Profile> {
    check_options("profile", options, { peak: record });
    const { Profiler } = await on_demand("profiler", () => import("../engine/profile.ts"));
    Profiler.check(this.engine_info);
    await this.forward(inputs);
    const { engine, weights, engine_info } = this;
    const profiler = new Profiler(engine, (handle) => weights.linear_bytes(handle));
    await this.#on(profiler.engine).forward(inputs);
    return profiler.finish(engine_info.adapter?.name ?? engine_info.level, options.peak);
  }

  /**
   * Measures which tile computes each of the model's linear layers, and attention, fastest on this GPU, for inputs of
   * these shapes. This model and models loaded later on the same adapter then use it. Choices are cached with downloads
   * (env.use_cache, env.cache_dir, env.cache_key) for this version of the engine on this adapter. Other programs use
   * them, too, so that each shape is measured once. Results don't depend on the tile. Measuring takes a second or so on
   * a GPU; without it, tiles are chosen by size.
   * @param options.again measures shapes again, for example if the GPU was busy the first time.
   * @returns the choice for each shape, with the times in milliseconds.
   * @throws VitMsnError UNSUPPORTED on the CPU, which has no tiles to choose from; otherwise like forward.
   */
  async tune(inputs: Inputs, options: { again?: boolean } = {}): Promise<readonly TileChoice[]> {
    check_options("tune", options, { again: flag });
    const { engine } = await this.ready();
    const { tune } = await on_demand("choice of tiles", () => import("../engine/webgpu/tiles.ts"));
    return tune(engine, options, (noting) => this.#on(noting).forward(inputs));
  }

  /** This model on an engine that decorates its own. */
  #on(engine: Engine): PreTrainedModel<Inputs, Output> {
    const model_class = this.constructor as unknown as ModelClass<PreTrainedModel<Inputs, Output>>;
    const { dtype, attn_implementation } = this;
    const resolved = { ...this.#loaded.running, dtype, attn_implementation };
    return new model_class(this.config, engine, this.weights, resolved);
  }

  /** The memory of the model's engine. */
  memory(): EngineMemory {
    this.#loaded.check_alive();
    return this.engine.memory();
  }

  /** Frees the model's memory; later calls throw DISPOSED. May be called twice. */
  async dispose(): Promise<void> {
    await this.#loaded.dispose();
  }

  /** @internal Checks that a forward pass can start; if the device was lost, waits until it is open again. */
  protected async ready(inputs?: ForwardInputs, more: Rules = {}): Promise<this> {
    this.#loaded.check_alive();
    if (inputs !== undefined) check_options("forward", inputs, INPUT_RULES, more);
    await this.#loaded.ready();
    return this;
  }

  /** @internal Call when the weights no longer equal the files, which then can't restore them after a device loss. */
  weights_changed(): void {
    this.#loaded.weights_changed();
  }

  /** @internal A model that is a part of this one and shares its engine and weights; disposing either frees both. */
  protected make_part<M>(model_class: Pick<ModelClass<M>, "modules"> & { new (...args: ModelArgs): M }): M {
    const { config, dtype, attn_implementation } = this;
    const { engine, weights, ...where } = this.#loaded.running;
    const modules = model_class.modules(config, weights.has(MASK_TOKEN));
    const part = { of: this.#loaded, modules };
    return new model_class(config, engine, weights, { ...where, dtype, attn_implementation, part });
  }
}

function resolve_options({
  dtype = "float32",
  attn_implementation = "sdpa",
}: ModelOptions): RequestedOptions {
  const aliases: Readonly<Record<string, WeightDtype>> = DTYPE_ALIASES;
  return { dtype: aliases[dtype] ?? (dtype as WeightDtype), attn_implementation };
}

/** Whether a source can be read again without holding its bytes in memory. */
function may_reload(source: PretrainedSource): boolean {
  if (typeof source === "string" || is_a(source, "URL")) return true;
  const files = is_a(source, "Map") ? [...source.values()] : Object.values(source);
  return files.every((file) => is_a(file, "Blob", "File") || is_a(file, "URL"));
}

/** Loads a model onto a new engine after a device loss, without repeating warnings. */
async function reload(
  model_class: ModelClass<unknown>,
  modules: readonly ModuleSpec[],
  config: ViTMSNConfig,
  source: PretrainedSource,
  resolved: RequestedOptions,
  options: PretrainedOptions,
): Promise<Running> {
  const again = { ...options, signal: undefined, progress_callback: undefined };
  const files = await open_source(source, again);
  const checkpoint = await open_checkpoint(files, {});
  try {
    const { found } = await match_files(checkpoint, modules, config, files);
    return await start(model_class, { modules, found }, config, resolved, again);
  } finally {
    await checkpoint.close();
  }
}

type AnyModelClass = ModelClass<PreTrainedModel<ForwardInputs, unknown>>;

/** Starts an engine and loads its weights. */
async function start(
  model_class: ModelClass<unknown>,
  { modules, found }: Matched,
  config: ViTMSNConfig,
  requested: RequestedOptions,
  options: ModelOptions & Pick<LoadOptions, "signal" | "cache_dir">,
): Promise<Running> {
  const { engine, device, engine_info } = await open_engine(options);
  try {
    const where = { ...requested, device, engine_info };
    const ahead = await start_compiler(model_class as AnyModelClass, engine, config, where);
    const { seed = 0, signal } = options;
    const { initializer_range } = config;
    const fill = { seed, initializer_range, signal };
    const weights = await create_weights(engine, modules, requested.dtype, found, fill);
    if (ahead) await until_aborted(ahead.compiled, signal, "Loading the model");
    return { engine, weights, device, engine_info };
  } catch (error) {
    await engine.dispose();
    throw error;
  }
}

/** If the engine can compile ahead, does so while the weights load. */
async function start_compiler(
  model_class: AnyModelClass,
  engine: Engine,
  config: ViTMSNConfig,
  options: ResolvedOptions,
) {
  if (engine.compile_ahead === undefined) return undefined;
  const { compile_ahead } = await on_demand("WebGPU engine", () => import("./compile_ahead.ts"));
  return compile_ahead(engine, config, options.dtype, {
    modules: (shallow) => model_class.modules(shallow, false),
    forward: (shallow, weights, inputs) => new model_class(shallow, engine, weights, options).forward(inputs),
  });
}
