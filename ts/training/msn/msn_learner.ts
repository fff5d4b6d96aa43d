import { Scope, type TensorHandle } from "../../engine/engine.ts";
import type { TrainingEngine } from "../../engine/training_engine.ts";
import { VitMsnError } from "../../errors.ts";
import type { ForwardInputs } from "../../model/inputs.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { mix } from "../../model/random.ts";
import { concatenate, type Tensor } from "../../tensor.ts";
import { layers_per_checkpoint } from "../checkpointing.ts";
import { clip_scale, diverged } from "../learner.ts";
import { Optimizer, type OptimizerOptions } from "../optimizers.ts";
import { add_gradient, type Parameter, training_engine } from "../parameters.ts";
import { permutation, Random } from "../random.ts";
import { type GradientSink, Tape, type TapeOptions } from "../tape.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";
import { MSNBranch } from "./msn_branch.ts";
import type { HeadSizes } from "./msn_head.ts";
import { type EncoderBatches, plan_encoder_batches } from "./msn_memory.ts";
import { type MSNScheduleSteps, type MSNStepRates, msn_rates } from "./msn_schedules.ts";
import type { MSNViews } from "./msn_views.ts";
import { cls_in_batches, RecomputedCLS } from "./recomputed_cls.ts";

/** Milliseconds that each part of a step took; with a remote engine, until its calls were sent. */
export interface MSNStepTimes {
  /** The target branch, and the targets from its projections. */
  target: number;
  /** Encoder and head of the anchors, forward. */
  anchors: number;
  loss: number;
  backward: number;
  /** Optimiser, the target's averaging, and packing weights for the kernels. */
  update: number;
}

/** The results of one step. */
export interface MSNStepResult extends MSNStepRates {
  /** cross_entropy + memax_weight · me_max + ent_weight · entropy. */
  loss: number;
  /** Between targets and the anchors' predictions. */
  cross_entropy: number;
  /** log K less the entropy of the mean prediction: 0 if all prototypes are used equally. */
  me_max: number;
  /** The mean entropy of the anchors' predictions. */
  entropy: number;
  /** The norm of the gradients of encoder and head before clipping. */
  grad_norm: number;
  /** float32 [B, num_proto]. */
  targets: Float32Array;
  /** The target branch's projections, float32 [B, output_dim]. */
  projections: Float32Array;
  /** The target branch's CLS tokens, float32 [B, hidden_size]. */
  features: Float32Array;
  times: MSNStepTimes;
}

/** Separate the random streams of dropped patches and prototypes. */
const [PATCHES, PROTOTYPES] = [11, 12];

/** Both branches, prototypes and their optimisers: computes pre-training steps. */
export class MSNLearner {
  readonly online: MSNBranch;
  readonly target: MSNBranch;
  readonly prototypes: Parameter;
  readonly engine: TrainingEngine;
  /** For encoder and head. */
  readonly optimizer: Optimizer;
  readonly prototype_optimizer: Optimizer;
  readonly #args: MSNPretrainingArguments;
  readonly #sink: GradientSink;

  private constructor(online: MSNBranch, target: MSNBranch, args: MSNPretrainingArguments) {
    this.online = online;
    this.target = target;
    this.engine = online.encoder.engine as TrainingEngine;
    this.#args = args;
    this.prototypes = this.#make_prototypes();
    const options: OptimizerOptions = {
      ...args,
      optim: "adamw_torch",
      momentum: 0,
      nesterov: false,
      lars_trust_coefficient: 0,
    };
    this.optimizer = new Optimizer(this.engine, options, () => 1);
    this.prototype_optimizer = new Optimizer(this.engine, options, () => 1);
    this.#sink = this.#make_sink();
  }

  /** A fresh head, prototypes and a target that is a copy. @throws VitMsnError UNSUPPORTED, OUT_OF_MEMORY. */
  static async create(model: ViTMSNModel, args: MSNPretrainingArguments): Promise<MSNLearner> {
    msn_engine(model);
    const { hidden_dim, output_dim } = args;
    const sizes: HeadSizes = { in_features: model.config.hidden_size, hidden_dim, output_dim };
    const online = await MSNBranch.create(model, sizes, args.seed);
    return new MSNLearner(online, await online.copy(sizes), args);
  }

  /**
   * One step of MSN.
   * @param step the number of steps done before.
   * @throws VitMsnError DIVERGED if the loss or a gradient isn't finite; the parameters are then unchanged.
   */
  async step(
    views: MSNViews,
    step: number,
    schedule: MSNScheduleSteps,
    signal: AbortSignal | undefined,
  ): Promise<MSNStepResult> {
    const rates = msn_rates(this.#args, step, schedule);
    const clock = new Clock();
    const scope = new Scope(this.engine);
    try {
      const groups = this.#groups(views, step, signal);
      const batches = plan_encoder_batches(
        this.online.encoder,
        this.#args,
        groups.map((group) => ({
          rows: group.pixel_values.dims[0] as number,
          tokens: this.#tokens_of(group),
        })),
      );
      const targets = await this.#targets(views, batches, rates.sharpen, scope, signal);
      clock.note("target");
      const terms = await this.#learn_from(groups, batches, targets.targets, step, clock, signal);
      if (!Number.isFinite(terms.loss)) throw diverged("The loss", terms.loss, step, rates.learning_rate);
      const grad_norm = await this.online.parameters.gradient_norm();
      if (!Number.isFinite(grad_norm))
        throw diverged("The gradients' norm", grad_norm, step, rates.learning_rate);
      const read = {
        targets: await this.engine.read(targets.targets),
        projections: await this.engine.read(targets.projections),
        features: await this.engine.read(targets.features),
      };
      this.#update(rates, grad_norm);
      clock.note("update");
      return { ...terms, ...rates, grad_norm, ...read, times: clock.times };
    } finally {
      scope.close();
      this.#clear_gradients();
    }
  }

  /** Frees everything but the online encoder. */
  async dispose(): Promise<void> {
    this.optimizer.dispose();
    this.prototype_optimizer.dispose();
    this.engine.free(this.prototypes.value);
    await this.online.dispose();
    await this.target.dispose();
    this.target.encoder.weights.free();
  }

  async #targets(
    views: MSNViews,
    batches: EncoderBatches,
    sharpen: number,
    scope: Scope,
    signal: AbortSignal | undefined,
  ) {
    const { temperature, use_sinkhorn, sinkhorn_iterations } = this.#args;
    const { engine } = this;
    const { target } = this;
    const size = batches.size(this.#tokens(views.target));
    const features = scope.use(await cls_in_batches(target.encoder, inputs_of(views.target, signal), size));
    const projections = scope.use(target.project_cls(features));
    const logits = scope.use(engine.prototype_logits(projections, this.prototypes.value, temperature));
    const iterations = use_sinkhorn ? sinkhorn_iterations : 0;
    const targets = scope.use(engine.msn_targets(logits, sharpen, iterations));
    scope.free(logits);
    return { features, projections, targets };
  }

  async #learn_from(
    groups: readonly ForwardInputs[],
    batches: EncoderBatches,
    targets: TensorHandle,
    step: number,
    clock: Clock,
    signal: AbortSignal | undefined,
  ) {
    const { temperature, memax_weight, ent_weight } = this.#args;
    const options = this.#tape_options(step, signal);
    const recomputed = batches.is_whole
      ? undefined
      : new RecomputedCLS(this.online.encoder, this.#sink, options);
    const tape = new Tape(this.engine, recomputed?.reader_sink ?? this.#sink, options);
    const scope = new Scope(tape);
    try {
      const anchors = await this.#anchors(groups, tape, scope, async (group) => {
        if (recomputed === undefined) return this.online.project(group, tape);
        const cls = await recomputed.forward(group, batches.size(this.#tokens_of(group)));
        return this.online.project_cls(cls, tape);
      });
      clock.note("anchors");
      const logits = scope.use(tape.prototype_logits(anchors, this.prototypes.value, temperature));
      const loss = scope.use(tape.msn_loss(logits, targets, memax_weight, ent_weight));
      const terms = await tape.read(loss);
      clock.note("loss");
      if (Number.isFinite(terms[0])) {
        await tape.backward(loss);
        await recomputed?.backward();
      }
      clock.note("backward");
      const [value, cross_entropy, me_max, entropy] = terms as unknown as [number, number, number, number];
      return { loss: value, cross_entropy, me_max, entropy };
    } finally {
      scope.close();
      tape.close();
      recomputed?.close();
    }
  }

  #tape_options(step: number, signal: AbortSignal | undefined): TapeOptions {
    const { gradient_checkpointing, seed } = this.#args;
    const { config } = this.online.encoder;
    return {
      layers_per_checkpoint: gradient_checkpointing ? layers_per_checkpoint(config.num_hidden_layers) : 0,
      hidden_dropout_prob: config.hidden_dropout_prob,
      attention_probs_dropout_prob: config.attention_probs_dropout_prob,
      seed: mix(seed ^ mix(step)),
      signal,
    };
  }

  /** The projections of all groups; each passes the batch norms separately. */
  async #anchors(
    groups: readonly ForwardInputs[],
    tape: Tape,
    scope: Scope,
    project: (group: ForwardInputs) => Promise<TensorHandle>,
  ): Promise<TensorHandle> {
    let anchors: TensorHandle | undefined;
    for (const group of groups) {
      const projections = scope.use(await project(group));
      anchors = anchors === undefined ? projections : scope.use(tape.concat_rows(anchors, projections));
    }
    return anchors as TensorHandle;
  }

  /**
   * The anchors by size, the random ones first. Only the first group loses patches, as in the original: random anchors,
   * with focal ones if those have the same size; focal anchors if there are no random ones.
   */
  #groups(views: MSNViews, step: number, signal: AbortSignal | undefined): ForwardInputs[] {
    const [first, ...rest] = join_sizes([views.random, views.focal]) as [Tensor, ...Tensor[]];
    const visible_patches = views.visible_patches ?? this.#visible_patches(first, step);
    return [
      { ...inputs_of(first, signal), ...(visible_patches && { visible_patches }) },
      ...rest.map((view) => inputs_of(view, signal)),
    ];
  }

  /**
   * The patches that are visible in a step's first group, the same for all as in the original; undefined for every
   * patch.
   */
  #visible_patches(view: Tensor, step: number): number[] | undefined {
    const { patch_drop, seed } = this.#args;
    if (patch_drop === 0) return undefined;
    const patches = this.#tokens(view) - 1;
    return [
      ...permutation(patches, new Random(seed, PATCHES, step)).subarray(
        0,
        visible_count(patches, patch_drop),
      ),
    ];
  }

  /** CLS and the patches of a view. */
  #tokens({ dims }: Tensor): number {
    const { height, width } = this.online.encoder.config.patch_grid;
    return 1 + Math.floor((dims[2] as number) / height) * Math.floor((dims[3] as number) / width);
  }

  /** The tokens of a group's views that pass the encoder. */
  #tokens_of({ pixel_values, visible_patches }: ForwardInputs): number {
    return visible_patches === undefined
      ? this.#tokens(pixel_values)
      : 1 + (visible_patches as readonly number[]).length;
  }

  #update({ learning_rate, weight_decay, ema_momentum }: MSNStepRates, grad_norm: number): void {
    const { parameters } = this.online;
    const gradient_scale = clip_scale(grad_norm, this.#args.max_grad_norm);
    this.optimizer.step(parameters.trained, { learning_rate, weight_decay, gradient_scale });
    this.prototype_optimizer.step([this.prototypes], { learning_rate, gradient_scale: 1 });
    parameters.write_back();
    this.target.follow(this.online, ema_momentum);
  }

  #clear_gradients(): void {
    this.online.parameters.clear_gradients();
    if (this.prototypes.gradient !== undefined) this.engine.free(this.prototypes.gradient);
    this.prototypes.gradient = undefined;
  }

  /** Prototypes from U(−1/√d, 1/√d), as in the original. */
  #make_prototypes(): Parameter {
    const { num_proto, output_dim, seed } = this.#args;
    const random = new Random(seed, PROTOTYPES);
    const bound = 1 / Math.sqrt(output_dim);
    const size = num_proto * output_dim;
    const values = Float32Array.from({ length: size }, () => random.uniform(-bound, bound));
    const dims = [num_proto, output_dim];
    return {
      name: "prototypes",
      specs: [{ key: "prototypes", dims, init: "normal" }],
      value: this.engine.tensor(values, dims),
      size,
      depth: 0,
      is_decayed: false,
      is_trained: true,
      gradient: undefined,
    };
  }

  #make_sink(): GradientSink {
    const { prototypes, engine } = this;
    const { parameters } = this.online;
    return {
      wants: (handle) => handle === prototypes.value || parameters.wants(handle),
      add: (tensor, gradient) => {
        if (tensor === prototypes.value) add_gradient(engine, prototypes, gradient);
        else parameters.add(tensor, gradient);
      },
      add_linear: (layer, gradients) => parameters.add_linear(layer, gradients),
    };
  }
}

/** The model's engine, if it can pre-train. @throws VitMsnError UNSUPPORTED. */
export function msn_engine(model: ViTMSNModel): TrainingEngine {
  const engine = training_engine(model);
  if (model.dtype !== "float32") {
    throw new VitMsnError(
      "UNSUPPORTED",
      `Pre-training needs a float32 model, because the target's updates are too small for ${model.dtype}; load it with dtype "float32".`,
    );
  }
  return engine;
}

/** How many of a view's patches remain. */
export function visible_count(patches: number, patch_drop: number): number {
  return Math.max(1, Math.floor((1 - patch_drop) * patches));
}

/** The views, those of one size in one tensor. */
function join_sizes(views: readonly (Tensor | undefined)[]): Tensor[] {
  const [first, second] = views.filter((view) => view !== undefined);
  if (second === undefined) return [first as Tensor];
  const size = ({ dims }: Tensor) => dims.slice(1).join();
  if (size(first as Tensor) !== size(second)) return [first as Tensor, second];
  return [concatenate([first, second] as Tensor<"float32">[])];
}

function inputs_of(pixel_values: Tensor, signal: AbortSignal | undefined): ForwardInputs {
  return {
    pixel_values,
    interpolate_pos_encoding: true,
    output_attentions: false,
    output_hidden_states: false,
    ...(signal && { signal }),
  };
}

/** Measures the consecutive parts of a step. */
class Clock {
  readonly times: MSNStepTimes = { target: 0, anchors: 0, loss: 0, backward: 0, update: 0 };
  #last = performance.now();

  /** Attributes the time since the last call to a part. */
  note(part: keyof MSNStepTimes): void {
    const now = performance.now();
    this.times[part] += now - this.#last;
    this.#last = now;
  }
}
