import { open_output_folder } from "#folders";
import { save_files } from "#save";
import { env } from "../../env.ts";
import { invalid_argument, throw_if_aborted, VitMsnError } from "../../errors.ts";
import { ViTImageProcessor } from "../../image/image_processing_vit.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { check_options } from "../../options.ts";
import { CallbackList } from "../callback_list.ts";
import { checkpoint_name, json, remove_old_checkpoints, STATE_FILE } from "../checkpoint.ts";
import { DataLoader } from "../data/data_loader.ts";
import type { TrainingData } from "../data/dataset.ts";
import type { OutputFolder } from "../folders/folder_types.ts";
import { BRANCH_RULES, check_trainer, PRETRAINER_RULES, TRAIN_RULES } from "../option_rules.ts";
import { make_plan, type Plan } from "../plan.ts";
import { find_checkpoint, held, output_dir_of, type ResumeOptions, tell_changes } from "../resuming.ts";
import { collapse_message, signs_of_collapse, type TargetStatistics, target_statistics } from "./collapse.ts";
import { MSNPretrainingArguments, type MSNPretrainingOptions } from "./msn_arguments.ts";
import type { MSNPretrainerCallback, MSNPretrainerControl, MSNPretrainerEvent } from "./msn_callbacks.ts";
import {
  type LoadedMSNCheckpoint,
  read_msn_checkpoint,
  restore_msn_learner,
  write_msn_checkpoint,
} from "./msn_checkpoint.ts";
import { MSNLearner, type MSNStepResult, msn_engine } from "./msn_learner.ts";
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

export interface MSNPretrainerOptions {
  /** The online encoder, float32: fresh from `msn_encoder`, or one that has learned before. It is trained in place. */
  model: ViTMSNModel;
  args?: MSNPretrainingArguments | MSNPretrainingOptions;
  /** What to go on from, where train() doesn't resume: weights, head, prototypes and the optimiser's memory are taken over. */
  initial_checkpoint?: OriginalMSNCheckpoint;
  /** Count initial_checkpoint's epochs among num_train_epochs, as the original does when it resumes; default false: begin with step 0. */
  continue_schedule?: boolean;
  /** Pictures; labels are ignored. Whole tensors must be uint8: views are cut from pictures. */
  train_dataset?: TrainingData;
  /** How views are normalised; it is saved beside the model. Default: ImageNet's mean and deviation for RGB, 0.5 for grey. */
  image_processor?: ViTImageProcessor;
  /** A picture that can't be read: "error" (default), or "skip" it with a warning. */
  unreadable_pictures?: "error" | "skip";
  /** Makes views in place of the above. */
  view_collator?: ViewCollator;
  callbacks?: readonly MSNPretrainerCallback[];
}

export interface MSNTrainCallOptions extends ResumeOptions {
  signal?: AbortSignal;
}

export interface MSNSaveOptions {
  /** "target" (default), the average that the paper evaluates, or "online". */
  branch?: "target" | "online";
}

/** What train gives back. */
export interface MSNTrainOutput {
  global_step: number;
  /** The mean over all steps. */
  training_loss: number;
  metrics: Record<string, number>;
}

/** A run under way. */
interface Run {
  loader: DataLoader<MSNViews>;
  learner: MSNLearner;
  plan: Plan;
  schedule: MSNScheduleSteps;
  folder: OutputFolder | undefined;
  started: number;
  /** global_step when it began. */
  first_step: number;
  signal: AbortSignal | undefined;
}

const IMAGENET = { image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225] };

/**
 * Self-supervised pre-training by Masked Siamese Networks (Assran et al., 2022): an encoder learns to give a view of a picture
 * with dropped patches the same cluster of prototypes as a target branch, its own average, gives another view whole.
 *
 * With the same options, data and number of threads, two runs give the same bits; so does one that was killed at any moment
 * and resumed from its newest checkpoint.
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
  #learner: MSNLearner | undefined;
  #is_training = false;

  /** @throws VitMsnError INVALID_ARGUMENT that names the option; UNSUPPORTED for a model or engine that can't pre-train. */
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
  }

  add_callback(callback: MSNPretrainerCallback): void {
    this.#callbacks.add(callback);
  }

  /**
   * The encoder of the target branch as it is now; undefined before train(). It lives on the model's engine: don't dispose it,
   * dispose() of this pre-trainer or of the model ends it.
   */
  get target(): ViTMSNModel | undefined {
    return this.#learner?.target.encoder;
  }

  /**
   * Trains the model in place, and the target beside it. Called again, it begins anew from the encoder as it is then, with a
   * fresh head and prototypes, unless it resumes.
   * @throws VitMsnError DIVERGED, ABORTED, IO where a checkpoint can't be written (those written before stay),
   *   INVALID_CHECKPOINT, OUT_OF_MEMORY, and what reading pictures throws. The model keeps what it has learned until then.
   */
  async train(options: MSNTrainCallOptions = {}): Promise<MSNTrainOutput> {
    check_options("train", options, TRAIN_RULES);
    if (this.#is_training) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        "This MSNPretrainer is training already; wait for train() to end.",
      );
    }
    this.#is_training = true;
    try {
      return await held(this.args, options, () => this.#train(options));
    } finally {
      this.#is_training = false;
    }
  }

  /**
   * Writes one branch's encoder as a backbone (config.json, model.safetensors) and the image processor, which from_pretrained
   * and Hugging Face transformers open; by default into output_dir. Before train() both branches are the model.
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

  /** Writes trainer_state.json into output_dir. */
  async save_state(): Promise<void> {
    await save_files(output_dir_of(this.args.output_dir, "MSNPretrainer"), {
      [STATE_FILE]: json(this.state),
    });
  }

  /** Writes metrics into output_dir as `<split>_results.json`. */
  async save_metrics(split: string, metrics: Readonly<Record<string, number>>): Promise<void> {
    await save_files(output_dir_of(this.args.output_dir, "MSNPretrainer"), {
      [`${split}_results.json`]: json(metrics),
    });
  }

  /** Frees target, heads, prototypes and optimiser; the model stays, with what it has learned. */
  async dispose(): Promise<void> {
    const learner = this.#learner;
    this.#learner = undefined;
    await learner?.dispose();
  }

  async #train({
    resume_from_checkpoint = false,
    changed_options,
    signal,
  }: MSNTrainCallOptions): Promise<MSNTrainOutput> {
    throw_if_aborted(signal, "Pre-training");
    const { args, model } = this;
    const data = this.#data();
    const loader = new DataLoader<MSNViews>(data, "train_dataset", {
      batch_size: args.per_device_train_batch_size,
      collate: this.#collate,
      is_training: true,
      seed: args.data_seed,
      drop_last: args.dataloader_drop_last,
      signal,
    });
    const plan = make_plan(args, loader.batches_per_epoch);
    const warmup = args.get_warmup_steps(plan.steps_per_epoch ?? plan.max_steps, plan.max_steps);
    const folder =
      args.save_strategy === "no" ? undefined : await open_output_folder(args.output_dir as SaveDirectory);
    const found = await find_checkpoint(args.output_dir, resume_from_checkpoint, read_msn_checkpoint);
    if (found) tell_changes(found, args.to_dict(), loader.length ?? null, changed_options);
    await this.dispose();
    const learner = await MSNLearner.create(model, args);
    this.#learner = learner;
    if (found) await restore_msn_learner(learner, found);
    else await this.#options.initial_checkpoint?.restore(learner);
    this.#reset(plan, loader, found);
    if (!found) this.#skip_done(plan);
    const run: Run = {
      loader,
      learner,
      plan,
      schedule: { total: plan.max_steps, warmup },
      folder,
      started: performance.now(),
      first_step: this.state.global_step,
      signal,
    };
    await this.#epochs(run);
    return this.#finish(run);
  }

  async #epochs(run: Run): Promise<void> {
    const { state, control } = this;
    await this.#callbacks.tell("on_train_begin", this.#event());
    while (state.global_step < run.plan.max_steps && !control.should_training_stop) {
      await this.#callbacks.tell("on_epoch_begin", this.#event());
      const is_begun = state.batches_done > 0;
      const steps = await this.#epoch(run);
      const is_whole = !control.should_training_stop && state.global_step < run.plan.max_steps;
      if (is_whole) {
        if (steps === 0 && !is_begun) {
          throw new VitMsnError("INVALID_ARGUMENT", "train_dataset gave no batch in a whole epoch.", {
            details: { argument: "train_dataset" },
          });
        }
        state.epochs_done++;
        state.batches_done = 0;
      }
      await this.#callbacks.tell("on_epoch_end", this.#event());
      if (this.args.save_strategy === "epoch") await this.#save(run);
    }
  }

  /** Steps until the epoch or the run ends; gives their number. */
  async #epoch(run: Run): Promise<number> {
    const { state, control } = this;
    const first = state.global_step;
    let waited_from = performance.now();
    for await (const views of run.loader.epoch(state.epochs_done, state.batches_done)) {
      state.batches_done++;
      if (views !== undefined) await this.#step(run, views, (performance.now() - waited_from) / 1000);
      if (state.global_step >= run.plan.max_steps || control.should_training_stop) break;
      waited_from = performance.now();
    }
    return state.global_step - first;
  }

  async #step(run: Run, views: MSNViews, data_seconds: number): Promise<void> {
    const { state, args, control } = this;
    const started = performance.now();
    const result = await run.learner.step(views, state.global_step, run.schedule, run.signal);
    state.global_step++;
    state.epoch = this.#fraction(run);
    const batch = views.target.dims[0] as number;
    const statistics = target_statistics(result.targets, result.projections, batch);
    const means = means_of(result, statistics, args.num_proto);
    this.#add_up(means, statistics);
    const step_seconds = (performance.now() - started) / 1000;
    const { learning_rate, weight_decay, ema_momentum, sharpen, times } = result;
    await this.#callbacks.tell("on_step_end", {
      ...this.#event(),
      ...means,
      learning_rate,
      weight_decay,
      ema_momentum,
      sharpen,
      times,
      prototypes_used: this.#prototypes_used(),
      eta_seconds: this.#seconds_left(run),
      step_seconds,
      data_seconds,
    });
    await this.#watch(run, batch, means);
    const is_due = (steps: number) => state.global_step % steps === 0;
    const is_last = state.global_step >= run.plan.max_steps;
    const is_first = args.logging_first_step && state.global_step === 1;
    if (control.should_log || is_due(args.logging_steps) || is_first || is_last)
      await this.#log_running(result);
    control.should_log = false;
    const saves = args.save_strategy === "steps" && (is_due(args.save_steps) || is_last);
    if (control.should_save || saves) await this.#save(run);
  }

  async #finish(run: Run): Promise<MSNTrainOutput> {
    const { state, args } = this;
    const seconds = (performance.now() - run.started) / 1000;
    const steps = state.global_step - run.first_step;
    const training_loss = state.total_loss / Math.max(1, state.global_step);
    const metrics = {
      train_runtime: seconds,
      train_samples_per_second: (steps * args.per_device_train_batch_size) / seconds,
      train_steps_per_second: steps / seconds,
      train_loss: training_loss,
      epoch: state.epoch,
    };
    await this.#log(metrics);
    await this.#callbacks.tell("on_train_end", this.#event());
    return { global_step: state.global_step, training_loss, metrics };
  }

  // Logs, collapse and checkpoints on the way.

  #add_up(means: Record<MSNMean, number>, { first }: TargetStatistics): void {
    const { state } = this;
    state.running.steps++;
    for (const name of MSN_MEANS) state.running[name] += means[name];
    state.total_loss += means.loss;
    for (const prototype of first) state.prototypes_last_used[prototype] = state.global_step;
  }

  #prototypes_used(): number {
    const { prototypes_last_used, global_step } = this.state;
    const oldest = Math.max(0, global_step - this.args.usage_window);
    return prototypes_last_used.reduce((count, step) => count + (step > oldest ? 1 : 0), 0);
  }

  /** Warns when a collapse begins; not before the window is full and the learning rate has risen. */
  async #watch(
    { schedule }: Run,
    batch: number,
    { target_similarity }: Record<MSNMean, number>,
  ): Promise<void> {
    const { state, args } = this;
    if (state.global_step < Math.max(args.usage_window, schedule.warmup)) return;
    const prototypes_used = this.#prototypes_used();
    const { num_proto, usage_window: window, use_sinkhorn } = args;
    const facts = { prototypes_used, num_proto, target_similarity, window, batch, use_sinkhorn };
    const signs = signs_of_collapse(facts);
    if (signs === undefined) state.collapsed_since = null;
    if (signs === undefined || state.collapsed_since !== null) return;
    state.collapsed_since = state.global_step;
    const message = collapse_message(state.global_step, signs, facts);
    env.warn(message);
    await this.#callbacks.tell("on_collapse", {
      ...this.#event(),
      message,
      prototypes_used,
      target_similarity,
    });
  }

  #seconds_left({ started, first_step, plan }: Run): number {
    const { global_step } = this.state;
    return (
      ((performance.now() - started) / 1000 / (global_step - first_step)) * (plan.max_steps - global_step)
    );
  }

  async #log_running({ learning_rate, weight_decay, ema_momentum }: MSNStepResult): Promise<void> {
    const { running } = this.state;
    const means = MSN_MEANS.map((name) => [name, running[name] / running.steps] as const);
    const logs: MSNLogs = {
      ...(Object.fromEntries(means) as Record<MSNMean, number>),
      prototypes_used: this.#prototypes_used(),
      learning_rate,
      weight_decay,
      ema_momentum,
    };
    this.state.running = fresh_msn_sums();
    await this.#log({ ...logs });
  }

  async #log(logs: Record<string, number>): Promise<void> {
    const { state } = this;
    const entry = { ...logs, epoch: state.epoch, step: state.global_step };
    state.log_history.push(entry);
    await this.#callbacks.tell("on_log", { ...this.#event(), logs: entry });
  }

  async #save({ folder, learner }: Run): Promise<void> {
    const { state, args, control, image_processor: processor } = this;
    control.should_save = false;
    if (folder === undefined) return;
    const name = checkpoint_name(state.global_step);
    this.#callbacks.keep_states(state.stateful_callbacks);
    await folder.write(name, (directory) =>
      write_msn_checkpoint(directory, { learner, state, args, processor }),
    );
    await remove_old_checkpoints(folder, args.save_total_limit, [name]);
    await this.#callbacks.tell("on_save", { ...this.#event(), checkpoint: name });
  }

  // Beginning.

  #reset(plan: Plan, loader: DataLoader<MSNViews>, found: LoadedMSNCheckpoint | undefined): void {
    const { state, args } = this;
    const data = {
      train_batch_size: args.per_device_train_batch_size,
      num_examples: loader.length ?? null,
    };
    Object.assign(state, fresh_msn_state(args.num_proto), found?.state, {
      ...data,
      max_steps: plan.max_steps,
      num_train_epochs: plan.num_train_epochs,
    });
    this.control.should_training_stop = false;
    this.#callbacks.load_states(state.stateful_callbacks);
  }

  /** Passes over the epochs that initial_checkpoint has seen. */
  #skip_done({ steps_per_epoch, max_steps }: Plan): void {
    const { continue_schedule = false, initial_checkpoint } = this.#options;
    if (!continue_schedule) return;
    const epoch = initial_checkpoint?.epoch;
    const done = (epoch ?? 0) * (steps_per_epoch ?? 0);
    if (epoch === undefined || steps_per_epoch === undefined || done >= max_steps) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        "continue_schedule needs an initial_checkpoint that says its epoch, data of a known length, and more num_train_epochs than " +
          `it has seen; it has seen ${epoch ?? "none"}.`,
        { details: { argument: "continue_schedule" } },
      );
    }
    this.state.epochs_done = epoch;
    this.state.global_step = done;
  }

  #view_collator(): ViewCollator {
    const { config } = this.model;
    const { image_processor: processor, args } = this;
    const { unreadable_pictures } = this.#options;
    return msn_view_collator({
      args,
      config,
      processor,
      ...(unreadable_pictures && { unreadable_pictures }),
    });
  }

  // What all of it needs.

  #event(): MSNPretrainerEvent {
    const { args, state, control } = this;
    return { args, state, control };
  }

  #fraction({ plan, loader }: Run): number {
    const { state } = this;
    const per_epoch = loader.batches_per_epoch;
    return per_epoch === undefined
      ? (state.global_step / plan.max_steps) * plan.num_train_epochs
      : state.epochs_done + state.batches_done / per_epoch;
  }

  #data(): TrainingData {
    const data = this.#options.train_dataset;
    if (data !== undefined) return data;
    throw new VitMsnError("INVALID_ARGUMENT", "The MSNPretrainer was made without train_dataset.", {
      details: { argument: "train_dataset" },
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
  const is_rgb = config.num_channels === 3;
  return new ViTImageProcessor({
    size: { height, width },
    do_convert_rgb: is_rgb,
    ...(is_rgb ? IMAGENET : { image_mean: 0.5, image_std: 0.5 }),
  });
}
