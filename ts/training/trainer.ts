import { open_output_folder } from "#folders";
import { save_files } from "#save";
import type { Scope } from "../engine/engine.ts";
import { env } from "../env.ts";
import { invalid_argument, throw_if_aborted, VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { check_options } from "../options.ts";
import { numbers_of, Tensor } from "../tensor.ts";
import { CallbackList } from "./callback_list.ts";
import type { TrainerCallback, TrainerControl, TrainerEvent } from "./callbacks.ts";
import {
  checkpoint_name,
  json,
  type LoadedCheckpoint,
  load_weights,
  read_checkpoint,
  remove_old_checkpoints,
  restore_learner,
  STATE_FILE,
  write_checkpoint,
} from "./checkpoint.ts";
import { type Batch, type DataCollator, image_collator } from "./data/collate.ts";
import { DataLoader } from "./data/data_loader.ts";
import type { TrainingData } from "./data/dataset.ts";
import type { ImageTransform } from "./data/transforms.ts";
import type { OutputFolder } from "./folders/folder_types.ts";
import { training_loss } from "./gradients.ts";
import { Learner, type StepResult } from "./learner.ts";
import { type ComputeMetrics, default_metrics } from "./metrics.ts";
import { check_trainer, EVALUATE_RULES, TRAIN_RULES, TRAINER_RULES } from "./option_rules.ts";
import { training_engine } from "./parameters.ts";
import { make_plan, type Plan } from "./plan.ts";
import { find_checkpoint, held, output_dir_of, type ResumeOptions, tell_changes } from "./resuming.ts";
import { fresh_sums, type LogEntry, type TrainerState } from "./trainer_state.ts";
import { TrainingArguments, type TrainingOptions } from "./training_arguments.ts";

export interface TrainerOptions {
  /** Float32, or half width with float32 copies while it learns. */
  model: ViTMSNForImageClassification;
  args?: TrainingArguments | TrainingOptions;
  train_dataset?: TrainingData;
  eval_dataset?: TrainingData;
  /** Makes pixel_values of pictures, and is saved beside the model. */
  image_processor?: ViTImageProcessor;
  /** Changes pictures before the processor, in training: as reference_transforms(processor).train. Default: none. */
  train_transform?: ImageTransform;
  /** The same in evaluation. Default: none. */
  eval_transform?: ImageTransform;
  /** A picture that can't be read: "error" (default), or "skip" it with a warning. */
  unreadable_pictures?: "error" | "skip";
  /** Makes batches in place of the above. */
  data_collator?: DataCollator;
  /** Metrics from all logits and labels of an evaluation; default: the accuracy, for one class a picture. */
  compute_metrics?: ComputeMetrics;
  callbacks?: readonly TrainerCallback[];
}

export interface TrainCallOptions extends ResumeOptions {
  signal?: AbortSignal;
}

export interface EvaluateOptions {
  /** What metrics' names begin with; default "eval". */
  metric_key_prefix?: string;
  signal?: AbortSignal;
}

/** What train gives back. */
export interface TrainOutput {
  global_step: number;
  /** The mean over all steps. */
  training_loss: number;
  metrics: Record<string, number>;
}

/** What predict gives back. */
export interface PredictionOutput {
  /** float32 [N, num_labels]: logits. */
  predictions: Tensor<"float32">;
  /** Where the data has labels. */
  label_ids: Tensor | undefined;
  metrics: Record<string, number>;
}

/** A training run under way. */
interface Run {
  loader: DataLoader<Batch>;
  learner: Learner;
  plan: Plan;
  folder: OutputFolder | undefined;
  started: number;
  /** global_step when it began. */
  first_step: number;
  signal: AbortSignal | undefined;
}

/**
 * Trains a classifier, evaluates it, and predicts with it; transformers' Trainer.
 *
 * With the same options, data and number of threads, two runs give the same bits; so does one that was killed at any moment
 * and resumed from its newest checkpoint.
 */
export class Trainer {
  /** Said outright, since minifiers rename classes. */
  static readonly name: string = "Trainer";
  readonly model: ViTMSNForImageClassification;
  readonly args: TrainingArguments;
  readonly state: TrainerState;
  readonly control: TrainerControl;
  readonly #options: TrainerOptions;
  readonly #callbacks: CallbackList<TrainerCallback>;
  readonly #collate: DataCollator;
  readonly #compute_metrics: ComputeMetrics;
  #is_training = false;
  #last_result: StepResult | undefined;

  /** @throws VitMsnError INVALID_ARGUMENT; UNSUPPORTED for an int8 model. */
  constructor(options: TrainerOptions) {
    check_trainer("Trainer", options, TRAINER_RULES);
    const { model, args = {}, image_processor, callbacks = [] } = options;
    if (model === undefined) throw invalid_argument("Trainer needs a model.", "model");
    training_engine(model);
    this.model = model;
    this.args = args instanceof TrainingArguments ? args : new TrainingArguments(args);
    this.state = fresh_state();
    this.control = {
      should_log: false,
      should_evaluate: false,
      should_save: false,
      should_training_stop: false,
    };
    this.#options = options;
    this.#callbacks = new CallbackList(callbacks);
    this.#collate =
      options.data_collator ??
      image_collator({
        config: model.config,
        processor: image_processor,
        train_transform: options.train_transform,
        eval_transform: options.eval_transform,
        unreadable_pictures: options.unreadable_pictures,
      });
    this.#compute_metrics = options.compute_metrics ?? default_metrics(model.config);
    check_classes(options.train_dataset, model, "train_dataset");
    check_classes(options.eval_dataset, model, "eval_dataset");
  }

  add_callback(callback: TrainerCallback): void {
    this.#callbacks.add(callback);
  }

  /**
   * Trains the model in place.
   * @throws VitMsnError DIVERGED, ABORTED, IO where a checkpoint can't be written (those written before stay),
   *   INVALID_CHECKPOINT, OUT_OF_MEMORY, and what reading pictures throws. The model keeps what it has learned until then.
   */
  async train(options: TrainCallOptions = {}): Promise<TrainOutput> {
    check_options("train", options, TRAIN_RULES);
    if (this.#is_training) {
      throw new VitMsnError("INVALID_ARGUMENT", "This Trainer is training already; wait for train() to end.");
    }
    this.#is_training = true;
    try {
      return await held(this.args, options, () => this.#train(options));
    } finally {
      this.#is_training = false;
    }
  }

  /**
   * The loss and metrics over a dataset, by default eval_dataset.
   * @returns eval_loss, what compute_metrics gives under "eval_…", and times.
   */
  async evaluate(dataset?: TrainingData, options: EvaluateOptions = {}): Promise<Record<string, number>> {
    check_options("evaluate", options, EVALUATE_RULES);
    const { metric_key_prefix = "eval", signal } = options;
    const data = this.#required(dataset ?? this.#options.eval_dataset, "eval_dataset");
    const { metrics } = await this.#predict(data, metric_key_prefix, signal);
    const epoch = this.state.epoch;
    await this.#log({ ...metrics, epoch });
    await this.#callbacks.tell("on_evaluate", { ...this.#event(), metrics });
    return { ...metrics, epoch };
  }

  /** The logits of a dataset and, where it has labels, loss and metrics under "test_…". */
  async predict(dataset: TrainingData, options: EvaluateOptions = {}): Promise<PredictionOutput> {
    check_options("predict", options, EVALUATE_RULES);
    return this.#predict(
      this.#required(dataset, "dataset"),
      options.metric_key_prefix ?? "test",
      options.signal,
    );
  }

  /** Writes the model and the image processor; by default into output_dir. */
  async save_model(directory: SaveDirectory | undefined = this.args.output_dir): Promise<void> {
    const folder = output_dir_of(directory, "Trainer");
    await this.model.save_pretrained(folder);
    await this.#options.image_processor?.save_pretrained(folder);
  }

  /** Writes trainer_state.json into output_dir. */
  async save_state(): Promise<void> {
    await save_files(output_dir_of(this.args.output_dir, "Trainer"), { [STATE_FILE]: json(this.state) });
  }

  /** Writes metrics into output_dir as `<split>_results.json`. */
  async save_metrics(split: string, metrics: Readonly<Record<string, number>>): Promise<void> {
    await save_files(output_dir_of(this.args.output_dir, "Trainer"), {
      [`${split}_results.json`]: json(metrics),
    });
  }

  async #train({
    resume_from_checkpoint = false,
    changed_options,
    signal,
  }: TrainCallOptions): Promise<TrainOutput> {
    throw_if_aborted(signal, "Training");
    const { args, model } = this;
    const data = this.#required(this.#options.train_dataset, "train_dataset");
    if (args.eval_strategy !== "no") this.#required(this.#options.eval_dataset, "eval_dataset");
    const loader = new DataLoader(data, "train_dataset", {
      batch_size: args.per_device_train_batch_size,
      collate: this.#collate,
      is_training: true,
      seed: args.data_seed,
      drop_last: args.dataloader_drop_last,
      signal,
    });
    const plan = make_plan(args, loader.batches_per_epoch, args.gradient_accumulation_steps);
    const folder =
      args.save_strategy === "no" ? undefined : await open_output_folder(args.output_dir as SaveDirectory);
    const found = await find_checkpoint(args.output_dir, resume_from_checkpoint, read_checkpoint);
    if (found) tell_changes(found, args.to_dict(), loader.length ?? null, changed_options);
    if (found) await load_weights(model, found.files);
    this.#reset(plan, loader, found);
    const learner = new Learner(model, args, plan.max_steps);
    try {
      if (found) restore_learner(learner, found);
      const { global_step: first_step } = this.state;
      const run: Run = { loader, learner, plan, folder, started: now(), first_step, signal };
      await this.#epochs(run);
      return await this.#finish(run);
    } finally {
      await learner.dispose();
    }
  }

  async #epochs(run: Run): Promise<void> {
    const { state, control, args } = this;
    await this.#callbacks.tell("on_train_begin", this.#event());
    if (args.eval_on_start && state.global_step === 0) await this.#evaluate_in_training(run);
    while (state.global_step < run.plan.max_steps && !control.should_training_stop) {
      await this.#callbacks.tell("on_epoch_begin", this.#event());
      const used = await this.#epoch(run);
      if (control.should_training_stop || state.global_step >= run.plan.max_steps) {
        // The last epoch ends with the run, wherever it is.
        await this.#end_of_epoch(run);
        break;
      }
      if (used === 0) {
        throw new VitMsnError("INVALID_ARGUMENT", "train_dataset gave no batch in a whole epoch.", {
          details: { argument: "train_dataset" },
        });
      }
      state.epochs_done++;
      state.batches_done = 0;
      await this.#end_of_epoch(run);
    }
  }

  /** Steps until the epoch or the run ends; gives the number of batches in the epoch so far. */
  async #epoch(run: Run): Promise<number> {
    const { state, control, args } = this;
    let group: Batch[] = [];
    let grouped = 0;
    const batches = run.loader.epoch(state.epochs_done, state.batches_done);
    const per_epoch = run.loader.batches_per_epoch;
    for await (const batch of batches) {
      if (batch !== undefined) group.push(batch);
      grouped++;
      const is_last = state.batches_done + grouped === per_epoch;
      if (grouped < args.gradient_accumulation_steps && !is_last) continue;
      await this.#step(run, group, grouped);
      [group, grouped] = [[], 0];
      if (state.global_step >= run.plan.max_steps || control.should_training_stop) return state.batches_done;
    }
    // Where a stream ends is only known when it has ended.
    if (grouped > 0) await this.#step(run, group, grouped);
    return state.batches_done;
  }

  async #step(run: Run, batches: readonly Batch[], grouped: number): Promise<void> {
    const { state, args, control } = this;
    const result = await run.learner.step(batches, state.global_step, run.signal);
    state.global_step++;
    state.batches_done += grouped;
    state.epoch = this.#fraction(run);
    if (result !== undefined) {
      this.#last_result = result;
      this.#add_up(result);
      await this.#callbacks.tell("on_step_end", { ...this.#event(), ...this.#step_facts(run, result) });
    }
    const is_due = (steps: number) => state.global_step % steps === 0;
    const is_last = state.global_step >= run.plan.max_steps;
    const is_first = args.logging_first_step && state.global_step === 1;
    const logs = args.logging_strategy === "steps" && (is_due(args.logging_steps) || is_last);
    if (control.should_log || logs || is_first) await this.#log_running(result);
    control.should_log = false;
    const evaluates = args.eval_strategy === "steps" && is_due(args.eval_steps);
    if (control.should_evaluate || evaluates) await this.#evaluate_in_training(run);
    const saves = args.save_strategy === "steps" && (is_due(args.save_steps) || is_last);
    if (control.should_save || saves) await this.#save(run);
  }

  async #end_of_epoch(run: Run): Promise<void> {
    await this.#callbacks.tell("on_epoch_end", this.#event());
    if (this.args.logging_strategy === "epoch") await this.#log_running(this.#last_result);
    if (this.args.eval_strategy === "epoch") await this.#evaluate_in_training(run);
    if (this.args.save_strategy === "epoch") await this.#save(run);
  }

  async #finish(run: Run): Promise<TrainOutput> {
    const { state, args } = this;
    const seconds = (now() - run.started) / 1000;
    const steps = state.global_step - run.first_step;
    const examples = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps;
    const training_loss = state.total_loss / Math.max(1, state.global_step);
    const metrics = {
      train_runtime: seconds,
      train_samples_per_second: examples / seconds,
      train_steps_per_second: steps / seconds,
      train_loss: training_loss,
      epoch: state.epoch,
    };
    if (args.load_best_model_at_end) await this.#load_best(run);
    await this.#log(metrics);
    await this.#callbacks.tell("on_train_end", this.#event());
    return { global_step: state.global_step, training_loss, metrics };
  }

  async #load_best({ learner, folder }: Run): Promise<void> {
    const best = this.state.best_model_checkpoint;
    if (best === null || folder === undefined) {
      env.warn("No checkpoint was both evaluated and saved, so the model stays as the last step left it.");
      return;
    }
    await learner.dispose();
    await load_weights(this.model, await open_source(await folder.source(best)));
  }

  // Logs, evaluation and checkpoints on the way.

  #add_up({ loss, examples, correct }: StepResult): void {
    const { running } = this.state;
    running.steps++;
    running.loss += loss;
    running.examples += examples;
    running.correct += correct ?? 0;
    this.state.total_loss += loss;
  }

  #step_facts(run: Run, { loss, correct, examples, grad_norm, learning_rate }: StepResult) {
    const done = this.state.global_step - run.first_step;
    const seconds_per_step = (now() - run.started) / 1000 / done;
    return {
      loss,
      accuracy: correct === undefined ? undefined : correct / examples,
      grad_norm,
      learning_rate,
      eta_seconds: seconds_per_step * (run.plan.max_steps - this.state.global_step),
    };
  }

  async #log_running(result: StepResult | undefined): Promise<void> {
    const { running, epoch } = this.state;
    if (running.steps === 0 || result === undefined) return;
    const { grad_norm, learning_rate } = result;
    const logs: Record<string, number> = {
      loss: running.loss / running.steps,
      grad_norm,
      learning_rate,
      epoch,
    };
    if (result.correct !== undefined) logs.accuracy = running.correct / running.examples;
    this.state.running = fresh_sums();
    await this.#log(logs);
  }

  async #log(logs: Record<string, number>): Promise<void> {
    const { state } = this;
    const entry: LogEntry = { ...logs, epoch: state.epoch, step: state.global_step };
    state.log_history.push(entry);
    await this.#callbacks.tell("on_log", { ...this.#event(), logs: entry });
  }

  async #evaluate_in_training(run: Run): Promise<void> {
    const { state, args, control } = this;
    control.should_evaluate = false;
    const metrics = await this.evaluate(undefined, { signal: run.signal });
    const name = `eval_${args.metric_for_best_model}`;
    const value = metrics[name];
    if (value === undefined) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `metric_for_best_model is "${args.metric_for_best_model}", but evaluation gives ${Object.keys(metrics).join(", ")}.`,
        { details: { argument: "metric_for_best_model" } },
      );
    }
    const best = state.best_metric;
    const is_better = best === null || (args.greater_is_better ? value > best : value < best);
    if (!is_better) return;
    state.best_metric = value;
    state.best_global_step = state.global_step;
  }

  async #save({ folder, learner }: Run): Promise<void> {
    const { state, args, control, model } = this;
    control.should_save = false;
    if (folder === undefined) return;
    const name = checkpoint_name(state.global_step);
    if (state.best_global_step === state.global_step) state.best_model_checkpoint = name;
    this.#callbacks.keep_states(state.stateful_callbacks);
    const processor = this.#options.image_processor;
    await folder.write(name, (directory) =>
      write_checkpoint(directory, { model, learner, state, args, processor }),
    );
    await remove_old_checkpoints(folder, args.save_total_limit, [name, state.best_model_checkpoint]);
    await this.#callbacks.tell("on_save", { ...this.#event(), checkpoint: name });
  }

  // Beginning.

  #reset(plan: Plan, loader: DataLoader<Batch>, found: LoadedCheckpoint | undefined): void {
    const { state, args } = this;
    const saved = found?.state;
    const data = {
      train_batch_size: args.per_device_train_batch_size,
      num_examples: loader.length ?? null,
    };
    Object.assign(state, fresh_state(), saved, {
      ...data,
      max_steps: plan.max_steps,
      num_train_epochs: plan.num_train_epochs,
    });
    this.control.should_training_stop = false;
    this.#callbacks.load_states(state.stateful_callbacks);
  }

  // Evaluation.

  async #predict(
    data: TrainingData,
    prefix: string,
    signal: AbortSignal | undefined,
  ): Promise<PredictionOutput> {
    const { args, model } = this;
    const started = now();
    const loader = new DataLoader(data, "eval_dataset", {
      batch_size: args.per_device_eval_batch_size,
      collate: this.#collate,
      is_training: false,
      seed: args.data_seed,
      signal,
    });
    const collected = new Collected(model.config.num_labels);
    let batches_done = 0;
    for await (const batch of loader.epoch(0)) {
      batches_done++;
      if (batch !== undefined) collected.add(await this.#forward(batch, signal), batch);
      const batches = loader.batches_per_epoch;
      await this.#callbacks.tell("on_prediction_step", { ...this.#event(), batches_done, batches });
    }
    const { predictions, label_ids, loss } = collected.finish();
    const metrics: Record<string, number> = {};
    if (label_ids !== undefined) {
      metrics[`${prefix}_loss`] = loss;
      const computed = await this.#compute_metrics({ predictions, label_ids });
      for (const [name, value] of Object.entries(computed)) metrics[with_prefix(name, prefix)] = value;
    }
    const seconds = (now() - started) / 1000;
    metrics[`${prefix}_runtime`] = seconds;
    metrics[`${prefix}_samples_per_second`] = (predictions.dims[0] as number) / seconds;
    metrics[`${prefix}_steps_per_second`] = batches_done / seconds;
    return { predictions, label_ids, metrics };
  }

  #forward({ pixel_values, labels }: Batch, signal: AbortSignal | undefined) {
    const { model, args } = this;
    const engine = training_engine(model);
    const inputs = { pixel_values, signal, output_attentions: false, output_hidden_states: false };
    return model.with_logits(inputs, async (logits, scope: Scope) => {
      const smoothing = args.label_smoothing_factor;
      const loss =
        labels === undefined
          ? undefined
          : training_loss(engine, scope, logits, labels, model.config, smoothing);
      return {
        logits: await engine.read(logits),
        loss: loss === undefined ? 0 : ((await engine.read(loss))[0] as number),
      };
    });
  }

  // What all of it needs.

  #event(): TrainerEvent {
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

  #required(data: TrainingData | undefined, name: string): TrainingData {
    if (data !== undefined) return data;
    throw new VitMsnError("INVALID_ARGUMENT", `The Trainer was made without ${name}.`, {
      details: { argument: name },
    });
  }
}

/** Logits, labels and losses of all batches. */
class Collected {
  readonly #num_labels: number;
  readonly #logits: Float32Array[] = [];
  readonly #labels: Tensor[] = [];
  #loss = 0;
  #examples = 0;

  constructor(num_labels: number) {
    this.#num_labels = num_labels;
  }

  add({ logits, loss }: { logits: Float32Array; loss: number }, { labels, pixel_values }: Batch): void {
    this.#logits.push(logits);
    const examples = pixel_values.dims[0] as number;
    if (labels) this.#labels.push(labels);
    // A batch whose labels are all left out has no loss.
    if (Number.isFinite(loss) || !labels) this.#loss += loss * examples;
    this.#examples += examples;
  }

  finish(): { predictions: Tensor<"float32">; label_ids: Tensor | undefined; loss: number } {
    const data = new Float32Array(this.#examples * this.#num_labels);
    let offset = 0;
    for (const logits of this.#logits) {
      data.set(logits, offset);
      offset += logits.length;
    }
    const predictions = new Tensor("float32", data, [this.#examples, this.#num_labels]);
    return { predictions, label_ids: this.#all_labels(), loss: this.#loss / Math.max(1, this.#examples) };
  }

  #all_labels(): Tensor | undefined {
    const [first] = this.#labels;
    if (first === undefined || this.#labels.length < this.#logits.length) return undefined;
    const type = first.type === "float32" ? "float32" : "int32";
    return new Tensor(type, this.#labels.flatMap(numbers_of), [this.#examples, ...first.dims.slice(1)]);
  }
}

/** Says at once which classes of the data the model doesn't have. */
function check_classes(
  data: TrainingData | undefined,
  { config }: ViTMSNForImageClassification,
  argument: string,
): void {
  const classes = (data as { classes?: readonly string[] } | undefined)?.classes;
  const unknown = classes?.filter((name) => !Object.hasOwn(config.label2id, name)) ?? [];
  if (unknown.length === 0) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${argument} has classes that the model doesn't: ${unknown.slice(0, 20).join(", ")}. Load the model with ` +
      "config: { id2label } of the data's classes and ignore_mismatched_sizes: true, so that its classifier is new.",
    { details: { argument, classes: unknown } },
  );
}

function fresh_state(): TrainerState {
  return {
    global_step: 0,
    max_steps: 0,
    num_train_epochs: 0,
    epoch: 0,
    train_batch_size: 0,
    num_examples: null,
    log_history: [],
    best_metric: null,
    best_global_step: null,
    best_model_checkpoint: null,
    epochs_done: 0,
    batches_done: 0,
    total_loss: 0,
    running: fresh_sums(),
    stateful_callbacks: {},
  };
}

function with_prefix(name: string, prefix: string): string {
  return name.startsWith(`${prefix}_`) ? name : `${prefix}_${name}`;
}

function now(): number {
  return performance.now();
}
