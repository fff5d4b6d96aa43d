import { Scope } from "../engine/engine.ts";
import { env } from "../env.ts";
import { invalid_argument, VitMsnError } from "../errors.ts";
import type { ViTImageProcessor } from "../image/image_processing_vit.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { check_options } from "../options.ts";
import { numbers_of, Tensor } from "../tensor.ts";
import { CallbackList } from "./callback_list.ts";
import type { TrainerCallback, TrainerControl, TrainerEvent } from "./callbacks.ts";
import {
  type LoadedCheckpoint,
  load_weights,
  read_checkpoint,
  restore_learner,
  write_checkpoint,
} from "./checkpoint.ts";
import { type Batch, type DataCollator, image_collator } from "./data/collate.ts";
import { DataLoader } from "./data/data_loader.ts";
import type { Dataset, TrainingData } from "./data/dataset.ts";
import { erasing_collator } from "./data/erasing.ts";
import { mixing_collator } from "./data/mixing.ts";
import type { ImageTransform } from "./data/transforms.ts";
import type { OutputFolder } from "./folders/folder_types.ts";
import { training_loss } from "./gradients.ts";
import { inputs_of, Learner, type StepResult } from "./learner.ts";
import { type ComputeLoss, call_loss, loss_in_javascript } from "./losses.ts";
import { type ComputeMetrics, default_metrics } from "./metrics.ts";
import { check_trainer, EVALUATE_RULES, TRAINER_RULES } from "./option_rules.ts";
import { training_engine } from "./parameters.ts";
import type { Plan } from "./plan.ts";
import { output_dir_of } from "./resuming.ts";
import { speed_metrics } from "./speed_metrics.ts";
import { fresh_state, fresh_sums, type TrainerState } from "./trainer_state.ts";
import { TrainingArguments, type TrainingOptions } from "./training_arguments.ts";
import {
  type Begun,
  required_data,
  type TrainCallOptions,
  TrainingLoop,
  type TrainOutput,
} from "./training_loop.ts";

export interface TrainerOptions {
  /** Float32, or half width with float32 copies while it learns. */
  model: ViTMSNForImageClassification;
  args?: TrainingArguments | TrainingOptions;
  train_dataset?: TrainingData;
  eval_dataset?: TrainingData;
  /** Turns images into pixel_values; saved next to the model. */
  image_processor?: ViTImageProcessor;
  /**
   * Augments images before the processor, in training; for example reference_transforms(processor).train.
   * Default: none.
   */
  train_transform?: ImageTransform;
  /** The same in evaluation. Default: none. */
  eval_transform?: ImageTransform;
  /** What to do with an image that can't be read: throw an "error" (default), or "skip" it with a warning. */
  unreadable_images?: "error" | "skip";
  /** Makes the batches instead; the options above are then unused. */
  data_collator?: DataCollator;
  /**
   * Metrics from all logits and labels of an evaluation, for example classification_metrics. Default: the accuracy if
   * each image has one class, multi_label_metrics if it has several, regression_metrics for numbers.
   */
  compute_metrics?: ComputeMetrics;
  /**
   * The loss of a batch and its gradient with respect to the logits, in training and evaluation; for example
   * distillation_loss(…). Default: by the config's problem_type, args.class_weights and args.label_smoothing_factor;
   * labels of float32 [batch, num_labels] with problem_type "single_label_classification" are soft labels.
   */
  compute_loss?: ComputeLoss;
  callbacks?: readonly TrainerCallback[];
}

export type { TrainCallOptions, TrainOutput } from "./training_loop.ts";

export interface EvaluateOptions {
  /** The prefix of the metrics' names; default "eval". */
  metric_key_prefix?: string;
  signal?: AbortSignal;
}

/** What predict() returns. */
export interface PredictionOutput {
  /** float32 [N, num_labels]: logits. */
  predictions: Tensor<"float32">;
  /** undefined if the data has no labels. */
  label_ids: Tensor | undefined;
  metrics: Record<string, number>;
}

/**
 * Trains a classifier, evaluates it, and predicts with it; transformers' Trainer.
 *
 * With the same options and data, two runs produce bit-identical results, with any number of threads; so does a run that
 * was killed at any point and resumed from its newest checkpoint.
 */
export class Trainer {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "Trainer";
  readonly model: ViTMSNForImageClassification;
  readonly args: TrainingArguments;
  readonly state: TrainerState;
  readonly control: TrainerControl;
  readonly #options: TrainerOptions;
  readonly #callbacks: CallbackList<TrainerCallback>;
  readonly #collate: DataCollator;
  readonly #compute_metrics: ComputeMetrics;
  readonly #event: TrainerEvent;
  readonly #skipped = new Set<string>();
  /** While train() runs. */
  #learner: Learner | undefined;
  readonly #loop: TrainingLoop<Learner, Batch, LoadedCheckpoint, StepResult, TrainerEvent>;

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
    const collate =
      options.data_collator ??
      image_collator(
        {
          config: model.config,
          processor: image_processor,
          train_transform: options.train_transform,
          eval_transform: options.eval_transform,
          unreadable_images: options.unreadable_images,
        },
        this.#skipped,
      );
    this.#collate = augmented(collate, model, this.args);
    this.#compute_metrics = options.compute_metrics ?? default_metrics(model.config);
    this.#event = { args: this.args, state: this.state, control: this.control };
    this.#loop = this.#make_loop();
    for (const argument of ["train_dataset", "eval_dataset"] as const) {
      check_classes(options[argument], model, argument);
      if (!options.compute_loss && !options.data_collator)
        check_problem_type(options[argument], model, argument);
    }
  }

  /** The names of the images that were skipped so far because they can't be read. */
  get skipped_images(): string[] {
    return [...this.#skipped];
  }

  add_callback(callback: TrainerCallback): void {
    this.#callbacks.add(callback);
  }

  /**
   * Trains the model in place.
   * @throws VitMsnError DIVERGED, ABORTED, IO if a checkpoint can't be written (earlier ones stay),
   *   INVALID_CHECKPOINT, OUT_OF_MEMORY, and what reading images throws. The model retains what it has
   *   learned until then.
   */
  async train(options: TrainCallOptions = {}): Promise<TrainOutput> {
    return this.#loop.train(options);
  }

  /**
   * The loss and metrics over a dataset, by default eval_dataset.
   * @returns eval_loss, the results of compute_metrics as "eval_…", and times.
   */
  async evaluate(dataset?: TrainingData, options: EvaluateOptions = {}): Promise<Record<string, number>> {
    check_options("evaluate", options, EVALUATE_RULES);
    const { metric_key_prefix = "eval", signal } = options;
    const data = required_data(dataset ?? this.#options.eval_dataset, "eval_dataset", "evaluate()");
    const { metrics } = await this.#with_result(() => this.#predict(data, metric_key_prefix, signal));
    const epoch = this.state.epoch;
    await this.#loop.log({ ...metrics, epoch });
    await this.#callbacks.emit("on_evaluate", { ...this.#event, metrics });
    return { ...metrics, epoch };
  }

  /** The logits of a dataset and, if it has labels, loss and metrics under "test_…". */
  async predict(dataset: TrainingData, options: EvaluateOptions = {}): Promise<PredictionOutput> {
    check_options("predict", options, EVALUATE_RULES);
    const data = required_data(dataset, "dataset", "predict()");
    const { metric_key_prefix = "test", signal } = options;
    return this.#with_result(() => this.#predict(data, metric_key_prefix, signal));
  }

  /** Writes the model and the image processor; by default into output_dir. */
  async save_model(directory: SaveDirectory | undefined = this.args.output_dir): Promise<void> {
    const folder = output_dir_of(directory, "Trainer");
    await this.#with_result(() => this.model.save_pretrained(folder));
    await this.#options.image_processor?.save_pretrained(folder);
  }

  /** Writes trainer_state.json into output_dir. */
  async save_state(): Promise<void> {
    await this.#loop.save_state();
  }

  /** Writes metrics into output_dir as `<split>_results.json`. */
  async save_metrics(split: string, metrics: Readonly<Record<string, number>>): Promise<void> {
    await this.#loop.save_metrics(split, metrics);
  }

  // The training loop, and what it calls.

  #make_loop(): TrainingLoop<Learner, Batch, LoadedCheckpoint, StepResult, TrainerEvent> {
    return new TrainingLoop({
      owner: "Trainer",
      activity: "Training",
      saves_memory:
        "gradient_checkpointing, or a smaller per_device_train_batch_size with more gradient_accumulation_steps",
      counts_empty_steps: true,
      event: this.#event,
      callbacks: this.#callbacks,
      hooks: {
        data: () => this.#data(),
        collate: this.#collate,
        read_checkpoint,
        begin: (plan, found) => this.#begin(plan, found),
        step: (learner, batches, signal) => learner.step(batches, this.state.global_step, signal),
        end_step: (result, { eta_seconds }) => this.#end_step(result, eta_seconds),
        take_logs: (result) => this.#take_logs(result),
        evaluate: (moment, signal) => this.#evaluate_if_due(moment, signal),
        save: (learner, directory, name) => this.#save(learner, directory, name),
        best_checkpoint: () => this.state.best_model_checkpoint,
        end: (learner, folder) => this.#load_best(learner, folder),
        close: (learner) => {
          this.#learner = undefined;
          return learner.dispose();
        },
      },
    });
  }

  /** Runs `body` while the model has the weights that training results in. */
  #with_result<T>(body: () => Promise<T>): Promise<T> {
    return this.#learner?.with_result(body) ?? body();
  }

  #data(): TrainingData {
    const data = required_data(this.#options.train_dataset, "train_dataset", "train()");
    if (this.args.eval_strategy !== "no")
      required_data(this.#options.eval_dataset, "eval_dataset", "train()");
    return data;
  }

  async #begin(
    { max_steps }: Plan,
    found: LoadedCheckpoint | undefined,
  ): Promise<Begun<Learner, TrainerState>> {
    if (found) await load_weights(this.model, found.files);
    const learner = new Learner(this.model, this.args, max_steps, this.#options.compute_loss);
    try {
      if (found) restore_learner(learner, found);
    } catch (error) {
      await learner.dispose();
      throw error;
    }
    this.#learner = learner;
    return { learner, state: { ...fresh_state(), ...found?.state } };
  }

  async #end_step(result: StepResult, eta_seconds: number): Promise<void> {
    const { running } = this.state;
    const { loss, correct, examples, grad_norm, learning_rate } = result;
    running.steps++;
    running.loss += loss;
    running.examples += examples;
    running.correct += correct ?? 0;
    this.state.total_loss += loss;
    const accuracy = correct === undefined ? undefined : correct / examples;
    await this.#callbacks.emit("on_step_end", {
      ...this.#event,
      loss,
      accuracy,
      grad_norm,
      learning_rate,
      eta_seconds,
    });
  }

  #take_logs({ grad_norm, learning_rate, correct }: StepResult): Record<string, number> {
    const { running, epoch } = this.state;
    this.state.running = fresh_sums();
    return {
      loss: running.loss / running.steps,
      grad_norm,
      learning_rate,
      epoch,
      ...(correct !== undefined && { accuracy: running.correct / running.examples }),
    };
  }

  async #evaluate_if_due(moment: "start" | "step" | "epoch", signal: AbortSignal | undefined): Promise<void> {
    const { args, control } = this;
    const { global_step } = this.state;
    const is_due = {
      start: args.eval_on_start && global_step === 0,
      step:
        control.should_evaluate || (args.eval_strategy === "steps" && global_step % args.eval_steps === 0),
      epoch: args.eval_strategy === "epoch",
    }[moment];
    if (!is_due) return;
    control.should_evaluate = false;
    this.#note_best(await this.evaluate(undefined, { signal }));
  }

  #note_best(metrics: Readonly<Record<string, number>>): void {
    const { state, args } = this;
    const value = metrics[`eval_${args.metric_for_best_model}`];
    if (value === undefined) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `metric_for_best_model is "${args.metric_for_best_model}", but evaluate() returns only ${Object.keys(metrics).join(", ")}.`,
        { details: { argument: "metric_for_best_model" } },
      );
    }
    const best = state.best_metric;
    const is_better = best === null || (args.greater_is_better ? value > best : value < best);
    if (!is_better) return;
    state.best_metric = value;
    state.best_global_step = state.global_step;
  }

  async #save(learner: Learner, directory: SaveDirectory, name: string): Promise<void> {
    const { state, args, model } = this;
    if (state.best_global_step === state.global_step) state.best_model_checkpoint = name;
    await write_checkpoint(directory, {
      model,
      learner,
      state,
      args,
      processor: this.#options.image_processor,
    });
  }

  async #load_best(learner: Learner, folder: OutputFolder | undefined): Promise<void> {
    if (!this.args.load_best_model_at_end) return;
    const best = this.state.best_model_checkpoint;
    if (best === null || folder === undefined) {
      env.warn(
        "No checkpoint was both evaluated and saved, so the model keeps the weights of the last step.",
      );
      return;
    }
    // Its memory makes room for the weights; disposing it again at the end of the run does nothing.
    await learner.dispose();
    await load_weights(this.model, await open_source(await folder.source(best)));
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
      await this.#callbacks.emit("on_prediction_step", { ...this.#event, batches_done, batches });
    }
    const { predictions, label_ids, loss } = collected.finish();
    const metrics: Record<string, number> = {};
    if (label_ids !== undefined) {
      metrics[`${prefix}_loss`] = loss;
      const computed = await this.#compute_metrics({ predictions, label_ids });
      for (const [name, value] of Object.entries(computed)) metrics[with_prefix(name, prefix)] = value;
    }
    const seconds = (now() - started) / 1000;
    Object.assign(metrics, speed_metrics(prefix, seconds, predictions.dims[0] as number, batches_done));
    return { predictions, label_ids, metrics };
  }

  async #forward(
    batch: Batch,
    signal: AbortSignal | undefined,
  ): Promise<{ logits: Float32Array; loss: number }> {
    const { model, args } = this;
    const { labels } = batch;
    const logits = await this.#logits(batch, signal);
    if (labels === undefined) return { logits: logits.data, loss: 0 };
    const own_loss = loss_in_javascript(
      {
        config: model.config,
        compute_loss: this.#options.compute_loss,
        label_smoothing: args.label_smoothing_factor,
        class_weights: args.class_weights,
      },
      labels,
    );
    if (own_loss !== undefined) {
      const { loss } = await call_loss(own_loss, { logits, labels, batch, signal });
      return { logits: logits.data, loss };
    }
    const engine = training_engine(model);
    const scope = new Scope(engine);
    try {
      const handle = scope.use(engine.tensor(logits.data, logits.dims));
      const loss = training_loss(engine, scope, handle, labels, model.config, args.label_smoothing_factor);
      return { logits: logits.data, loss: (await engine.read(loss))[0] as number };
    } finally {
      scope.close();
    }
  }

  /** The logits of a batch, or with test_time_augmentation their mean over the views of each image. */
  async #logits(batch: Batch, signal: AbortSignal | undefined): Promise<Tensor<"float32">> {
    const engine = training_engine(this.model);
    const read = (batch: Batch) =>
      this.model.with_logits(
        inputs_of(batch, signal),
        async (handle) => new Tensor("float32", await engine.read(handle), engine.dims(handle)),
      );
    const logits = await read(batch);
    if (this.args.test_time_augmentation === "none") return logits;
    const mirrored = await read({ ...batch, pixel_values: mirrored_pixels(batch.pixel_values) });
    return new Tensor(
      "float32",
      logits.data.map((x, i) => (x + (mirrored.data[i] as number)) / 2),
      logits.dims,
    );
  }
}

/** [batch, channels, height, width] with left and right exchanged. */
function mirrored_pixels({ data, dims }: Tensor): Tensor<"float32"> {
  const mirrored = Float32Array.from(data as ArrayLike<number>);
  const width = dims[3] as number;
  for (let row = 0; row < mirrored.length; row += width) mirrored.subarray(row, row + width).reverse();
  return new Tensor("float32", mirrored, dims);
}

/** A collator whose training batches are erased and mixed as the arguments say. */
function augmented(
  collate: DataCollator,
  { config }: ViTMSNForImageClassification,
  args: TrainingArguments,
): DataCollator {
  const erased = args.random_erasing_prob > 0 ? erasing_collator(collate, args) : collate;
  const is_mixed = args.mixup_alpha > 0 || args.cutmix_alpha > 0;
  return is_mixed ? mixing_collator(erased, config, args) : erased;
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
    // A batch whose labels are all ignored has no loss.
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

/** @throws VitMsnError INVALID_ARGUMENT for classes of the data that the model doesn't have. */
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
    `${argument} has classes that the model doesn't have: ${unknown.slice(0, 20).join(", ")}. Load the model with ` +
      "config: { id2label } for the data's classes and ignore_mismatched_sizes: true, which gives it a new classifier.",
    { details: { argument, classes: unknown } },
  );
}

/**
 * Checks that the model is for the data's kind of labels; a config without a problem type gets theirs.
 * @throws VitMsnError INVALID_ARGUMENT.
 */
function check_problem_type(
  data: TrainingData | undefined,
  { config }: ViTMSNForImageClassification,
  argument: string,
): void {
  const { problem_type } = (data ?? {}) as Partial<Dataset>;
  if (problem_type === undefined) return;
  config.problem_type ??= problem_type;
  if (config.problem_type === problem_type) return;
  throw invalid_argument(
    `${argument} has labels for ${problem_type}, but the model's problem_type is ${config.problem_type}. Load the model with ` +
      `config: { problem_type: "${problem_type}" }, or open the data with problem_type: "${config.problem_type}".`,
    argument,
  );
}

function with_prefix(name: string, prefix: string): string {
  return name.startsWith(`${prefix}_`) ? name : `${prefix}_${name}`;
}

function now(): number {
  return performance.now();
}
