import { save_files } from "#save";
import { env } from "../../env.ts";
import { invalid_argument, VitMsnError } from "../../errors.ts";
import { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import { msn_statistics } from "../../image/msn_statistics.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { check_options } from "../../options.ts";
import { CallbackList } from "../callback_list.ts";
import type { TrainingData } from "../data/dataset.ts";
import { BRANCH_RULES, check_trainer, ORIGINAL_RULES, PRETRAINER_RULES } from "../option_rules.ts";
import type { Plan } from "../plan.ts";
import { output_dir_of } from "../resuming.ts";
import {
  type Begun,
  required_data,
  type StepTimes,
  type TrainCallOptions,
  TrainingLoop,
  type TrainOutput,
} from "../training_loop.ts";
import { collapse_message, signs_of_collapse, type TargetStatistics, target_statistics } from "./collapse.ts";
import { effective_rank } from "./effective_rank.ts";
import { MSNPretrainingArguments, type MSNPretrainingOptions } from "./msn_arguments.ts";
import type { MSNPretrainerCallback, MSNPretrainerControl, MSNPretrainerEvent } from "./msn_callbacks.ts";
import {
  type LoadedMSNCheckpoint,
  read_msn_checkpoint,
  restore_msn_learner,
  write_msn_checkpoint,
} from "./msn_checkpoint.ts";
import { MSNLearner, type MSNStepResult, msn_engine } from "./msn_learner.ts";
import { plan_encoder_batches } from "./msn_memory.ts";
import type { MSNScheduleSteps } from "./msn_schedules.ts";
import {
  fresh_msn_state,
  fresh_msn_sums,
  MSN_MEANS,
  type MSNLogs,
  type MSNMean,
  type MSNPretrainerState,
} from "./msn_state.ts";
import { type MSNViews, msn_view_collator, type ViewCollator } from "./msn_views.ts";
import type { OriginalMSNCheckpoint } from "./original_checkpoint.ts";
import { write_original_checkpoint } from "./write_original.ts";

export interface MSNPretrainerOptions {
  /** The online encoder, float32: fresh from `msn_encoder`, or already trained. It is trained in place. */
  model: ViTMSNModel;
  args?: MSNPretrainingArguments | MSNPretrainingOptions;
  /**
   * Where train() starts unless it resumes: weights, head, prototypes and the optimiser's state are restored.
   */
  initial_checkpoint?: OriginalMSNCheckpoint;
  /**
   * Count initial_checkpoint's epochs among num_train_epochs, as the original code does when it resumes;
   * default false: start at step 0.
   */
  continue_schedule?: boolean;
  /** Images; labels are ignored. Tensors must be uint8, since views are cropped from images. */
  train_dataset?: TrainingData;
  /**
   * How views are normalised; saved next to the model. Default: ImageNet's mean and deviation for RGB, 0.5
   * for grey.
   */
  image_processor?: ViTImageProcessor;
  /** What to do with an image that can't be read: throw an "error" (default), or "skip" it with a warning. */
  unreadable_images?: "error" | "skip";
  /** Makes the views instead; the options above are then unused. */
  view_collator?: ViewCollator;
  callbacks?: readonly MSNPretrainerCallback[];
}

export type MSNTrainCallOptions = TrainCallOptions;
export type MSNTrainOutput = TrainOutput;

export interface MSNSaveOptions {
  /** "target" (default), the average that the paper evaluates, or "online". */
  branch?: "target" | "online";
}

export interface OriginalSaveOptions {
  /** Default "msn-latest.pth.tar", which the original reads with `write_tag: msn`. */
  file_name?: string;
  /** Whether the original will run on several GPUs, where keys begin with "module."; default true. */
  distributed?: boolean;
}

/** One step and its statistics. */
interface MSNStep {
  result: MSNStepResult;
  statistics: TargetStatistics;
  means: Record<MSNMean, number>;
  /** The number of images. */
  batch: number;
}

/**
 * Self-supervised pre-training by Masked Siamese Networks (Assran et al., 2022): an encoder learns to assign
 * a view of an image with dropped patches to the same prototypes as the target branch, a moving average of
 * the encoder, assigns another, whole view.
 *
 * With the same options and data, two runs produce bit-identical results, with any number of threads; so does a run that
 * was killed at any point and resumed from its newest checkpoint.
 */
export class MSNPretrainer {
  readonly model: ViTMSNModel;
  readonly args: MSNPretrainingArguments;
  readonly state: MSNPretrainerState;
  readonly control: MSNPretrainerControl;
  readonly image_processor: ViTImageProcessor;
  readonly #options: MSNPretrainerOptions;
  readonly #callbacks: CallbackList<MSNPretrainerCallback>;
  readonly #collate: ViewCollator;
  readonly #event: MSNPretrainerEvent;
  readonly #loop: TrainingLoop<MSNLearner, MSNViews, LoadedMSNCheckpoint, MSNStep, MSNPretrainerEvent>;
  #learner: MSNLearner | undefined;
  #schedule: MSNScheduleSteps = { total: 0, warmup: 0 };

  /**
   * @throws VitMsnError INVALID_ARGUMENT that names the option; UNSUPPORTED for a model or engine that
   *   can't pre-train.
   */
  constructor(options: MSNPretrainerOptions) {
    check_trainer("MSNPretrainer", options, PRETRAINER_RULES);
    const { model, args = {}, callbacks = [] } = options;
    if (model === undefined) throw invalid_argument("MSNPretrainer needs a model.", "model");
    msn_engine(model);
    this.model = model;
    this.args = args instanceof MSNPretrainingArguments ? args : new MSNPretrainingArguments(args);
    this.args.get_sizes(model.config);
    this.state = fresh_msn_state(this.args.num_proto);
    this.control = { should_log: false, should_save: false, should_training_stop: false };
    this.image_processor = options.image_processor ?? default_processor(model);
    this.#options = options;
    this.#callbacks = new CallbackList(callbacks);
    this.#collate = options.view_collator ?? this.#view_collator();
    this.#event = { args: this.args, state: this.state, control: this.control };
    this.#loop = this.#make_loop();
  }

  add_callback(callback: MSNPretrainerCallback): void {
    this.#callbacks.add(callback);
  }

  /**
   * The current encoder of the target branch; undefined before train(). It shares the model's engine: don't
   * dispose it; dispose() of this pre-trainer or of the model frees it.
   */
  get target(): ViTMSNModel | undefined {
    return this.#learner?.target.encoder;
  }

  /**
   * Trains the model in place, and the target with it. Called again, it starts from the current encoder with
   * a fresh head and prototypes, unless it resumes.
   * @throws VitMsnError DIVERGED, ABORTED, IO if a checkpoint can't be written (earlier ones stay),
   *   INVALID_CHECKPOINT, OUT_OF_MEMORY, and what reading images throws. The model retains what it has
   *   learned until then.
   */
  async train(options: MSNTrainCallOptions = {}): Promise<MSNTrainOutput> {
    return this.#loop.train(options);
  }

  /**
   * Writes one branch's encoder as a backbone (config.json, model.safetensors) and the image processor, by
   * default into output_dir. from_pretrained and Hugging Face transformers load it. Before train() both
   * branches are the model.
   */
  async save_model(
    directory: SaveDirectory | undefined = this.args.output_dir,
    options: MSNSaveOptions = {},
  ): Promise<void> {
    check_options("save_model", options, BRANCH_RULES);
    const { branch = "target" } = options;
    const folder = output_dir_of(directory, "MSNPretrainer");
    const encoder = branch === "online" ? this.model : (this.target ?? this.model);
    await encoder.save_pretrained(folder);
    await this.image_processor.save_pretrained(folder);
  }

  /**
   * Writes the run as a checkpoint of the original code (facebookresearch/msn), by default into output_dir: it continues
   * there by `load_checkpoint: true`, for example on a cluster of GPUs, and `initial_checkpoint` continues here.
   * @throws VitMsnError INVALID_ARGUMENT before train(), UNSUPPORTED from 4 GiB on, IO.
   */
  async save_original_checkpoint(
    directory: SaveDirectory | undefined = this.args.output_dir,
    options: OriginalSaveOptions = {},
  ): Promise<void> {
    check_options("save_original_checkpoint", options, ORIGINAL_RULES);
    const { file_name = "msn-latest.pth.tar", distributed = true } = options;
    const folder = output_dir_of(directory, "MSNPretrainer");
    if (this.#learner === undefined) {
      throw invalid_argument("save_original_checkpoint() needs a run: call train() first.");
    }
    const content = write_original_checkpoint({
      learner: this.#learner,
      args: this.args,
      epoch: Math.floor(this.state.epoch),
      loss: this.state.total_loss / Math.max(1, this.state.global_step),
      distributed,
    });
    await save_files(folder, { [file_name]: content });
  }

  /** Writes trainer_state.json into output_dir. */
  async save_state(): Promise<void> {
    await this.#loop.save_state();
  }

  /** Writes metrics into output_dir as `<split>_results.json`. */
  async save_metrics(split: string, metrics: Readonly<Record<string, number>>): Promise<void> {
    await this.#loop.save_metrics(split, metrics);
  }

  /** Frees target, heads, prototypes and optimiser; the model stays, with its trained weights. */
  async dispose(): Promise<void> {
    const learner = this.#learner;
    this.#learner = undefined;
    await learner?.dispose();
  }

  // The training loop, and what it calls.

  #make_loop(): TrainingLoop<MSNLearner, MSNViews, LoadedMSNCheckpoint, MSNStep, MSNPretrainerEvent> {
    return new TrainingLoop({
      owner: "MSNPretrainer",
      activity: "Pre-training",
      saves_memory: "a smaller encoder_batch_size, gradient_checkpointing, or a smaller model",
      counts_empty_steps: false,
      event: this.#event,
      callbacks: this.#callbacks,
      hooks: {
        data: () => required_data(this.#options.train_dataset, "train_dataset", "train()"),
        collate: this.#collate,
        read_checkpoint: read_msn_checkpoint,
        begin: (plan, found) => this.#begin(plan, found),
        step: (learner, [views], signal) => this.#step(learner, views as MSNViews, signal),
        end_step: (step, times) => this.#end_step(step, times),
        take_logs: (step) => this.#take_logs(step),
        save: (learner, directory) => this.#save(learner, directory),
      },
    });
  }

  async #begin(
    plan: Plan,
    found: LoadedMSNCheckpoint | undefined,
  ): Promise<Begun<MSNLearner, MSNPretrainerState>> {
    const { model, args } = this;
    const warmup = args.get_warmup_steps(plan.steps_per_epoch ?? plan.max_steps, plan.max_steps);
    this.#schedule = { total: plan.max_steps, warmup };
    await this.dispose();
    if (this.#options.view_collator === undefined) this.#check_memory();
    const learner = await MSNLearner.create(model, args);
    this.#learner = learner;
    if (found) await restore_msn_learner(learner, found);
    else await this.#options.initial_checkpoint?.restore(learner);
    const state = { ...fresh_msn_state(args.num_proto), ...(found?.state ?? this.#epochs_seen(plan)) };
    return { learner, state };
  }

  /** @throws VitMsnError OUT_OF_MEMORY if the run can't fit, before anything is computed. */
  #check_memory(): void {
    const { model, args } = this;
    const { rand_size, focal_size } = args.get_sizes(model.config);
    const { height, width } = model.config.patch_grid;
    const batch = args.per_device_train_batch_size;
    const group = (views: number, size: number) => {
      const patches = (size / height) * (size / width);
      return { rows: views * batch, tokens: 1 + patches };
    };
    const groups = [group(args.rand_views, rand_size), group(args.focal_views, focal_size)];
    plan_encoder_batches(
      model,
      args,
      groups.filter(({ rows }) => rows > 0),
    );
  }

  async #step(learner: MSNLearner, views: MSNViews, signal: AbortSignal | undefined): Promise<MSNStep> {
    const result = await learner.step(views, this.state.global_step, this.#schedule, signal);
    const batch = views.target.dims[0] as number;
    const statistics = target_statistics(result.targets, result.projections, batch);
    return { result, statistics, means: means_of(result, statistics, this.args.num_proto), batch };
  }

  async #end_step(step: MSNStep, times: StepTimes): Promise<void> {
    const { result, means } = step;
    this.#add_up(step);
    const { learning_rate, weight_decay, ema_momentum, sharpen } = result;
    await this.#callbacks.emit("on_step_end", {
      ...this.#event,
      ...means,
      learning_rate,
      weight_decay,
      ema_momentum,
      sharpen,
      times: result.times,
      prototypes_used: this.#prototypes_used(),
      ...times,
    });
    await this.#watch(step);
  }

  #take_logs({ result }: MSNStep): Record<string, number> {
    const { learning_rate, weight_decay, ema_momentum, features } = result;
    const { running } = this.state;
    const means = MSN_MEANS.map((name) => [name, running[name] / running.steps] as const);
    const logs: MSNLogs = {
      ...(Object.fromEntries(means) as Record<MSNMean, number>),
      prototypes_used: this.#prototypes_used(),
      effective_rank: effective_rank(features, this.model.config.hidden_size),
      learning_rate,
      weight_decay,
      ema_momentum,
    };
    this.state.running = fresh_msn_sums();
    return { ...logs };
  }

  async #save(learner: MSNLearner, directory: SaveDirectory): Promise<void> {
    const { state, args, image_processor: processor } = this;
    await write_msn_checkpoint(directory, { learner, state, args, processor });
  }

  /** The progress that initial_checkpoint's epochs are, if continue_schedule counts them. */
  #epochs_seen({ steps_per_epoch, max_steps }: Plan): Partial<MSNPretrainerState> {
    const { continue_schedule = false, initial_checkpoint } = this.#options;
    if (!continue_schedule) return {};
    const epoch = initial_checkpoint?.epoch;
    const done = (epoch ?? 0) * (steps_per_epoch ?? 0);
    if (epoch === undefined || steps_per_epoch === undefined || done >= max_steps) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        "continue_schedule needs an initial_checkpoint that records its epoch, data of a known length, and more num_train_epochs " +
          `than the checkpoint has seen (${epoch ?? "not recorded"}).`,
        { details: { argument: "continue_schedule" } },
      );
    }
    return { epochs_done: epoch, global_step: done };
  }

  // Sums and signs of collapse.

  #add_up({ means, statistics }: MSNStep): void {
    const { state } = this;
    state.running.steps++;
    for (const name of MSN_MEANS) state.running[name] += means[name];
    state.total_loss += means.loss;
    for (const prototype of statistics.first) state.prototypes_last_used[prototype] = state.global_step;
  }

  #prototypes_used(): number {
    const { prototypes_last_used, global_step } = this.state;
    const oldest = Math.max(0, global_step - this.args.usage_window);
    return prototypes_last_used.reduce((count, step) => count + (step > oldest ? 1 : 0), 0);
  }

  /** Warns when a collapse begins, once the window is full and the warm-up is over. */
  async #watch({ batch, means: { target_similarity } }: MSNStep): Promise<void> {
    const { state, args } = this;
    if (state.global_step < Math.max(args.usage_window, this.#schedule.warmup)) return;
    const prototypes_used = this.#prototypes_used();
    const { num_proto, usage_window: window, use_sinkhorn } = args;
    const facts = { prototypes_used, num_proto, target_similarity, window, batch, use_sinkhorn };
    const signs = signs_of_collapse(facts);
    if (signs === undefined) state.collapsed_since = null;
    if (signs === undefined || state.collapsed_since !== null) return;
    state.collapsed_since = state.global_step;
    const message = collapse_message(state.global_step, signs, facts);
    env.warn(message);
    await this.#callbacks.emit("on_collapse", {
      ...this.#event,
      message,
      prototypes_used,
      target_similarity,
    });
  }

  #view_collator(): ViewCollator {
    const { config } = this.model;
    const { image_processor: processor, args } = this;
    const { unreadable_images } = this.#options;
    return msn_view_collator({
      args,
      config,
      processor,
      ...(unreadable_images && { unreadable_images }),
    });
  }
}

function means_of(
  { loss, cross_entropy, me_max, entropy, grad_norm }: MSNStepResult,
  { target_max, target_similarity }: TargetStatistics,
  num_proto: number,
): Record<MSNMean, number> {
  const mean_entropy = Math.log(num_proto) - me_max;
  return { loss, cross_entropy, me_max, entropy, mean_entropy, target_max, target_similarity, grad_norm };
}

function default_processor({ config }: ViTMSNModel): ViTImageProcessor {
  const { height, width } = config.image_grid;
  return new ViTImageProcessor({ size: { height, width }, ...msn_statistics(config.num_channels) });
}
