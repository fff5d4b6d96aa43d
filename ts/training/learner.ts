import type { Scope, TensorHandle } from "../engine/engine.ts";
import type { TrainingEngine } from "../engine/training_engine.ts";
import { VitMsnError } from "../errors.ts";
import type { ForwardInputs } from "../model/inputs.ts";
import { problem_type_of } from "../model/losses.ts";
import type { ViTMSNForImageClassification } from "../model/modeling_vit_msn.ts";
import { mix } from "../model/random.ts";
import { numbers_of, Tensor } from "../tensor.ts";
import { layers_per_checkpoint } from "./checkpointing.ts";
import type { Batch } from "./data/collate.ts";
import { training_loss } from "./gradients.ts";
import { type ComputeLoss, call_loss, is_soft, loss_in_javascript, total_weight } from "./losses.ts";
import { argmax_rows, count_correct } from "./metrics.ts";
import { Optimizer } from "./optimizers.ts";
import { type Parameter, Parameters, training_engine } from "./parameters.ts";
import { learning_rate_factor, type ScheduleSteps } from "./schedules.ts";
import { Tape } from "./tape.ts";
import type { TrainingArguments } from "./training_arguments.ts";
import { WeightAverage } from "./weight_average.ts";

/** The results of one optimiser step. */
export interface StepResult {
  loss: number;
  /** Images whose labels counted. */
  examples: number;
  /** Those that were classified correctly; undefined if there are no classes. */
  correct: number | undefined;
  grad_norm: number;
  learning_rate: number;
}

/** As torch's clip_grad_norm_. */
const CLIP_EPSILON = 1e-6;
/** The label of an image that the loss ignores. */
const IGNORED = -100;

/** A model with its gradients and its optimiser: computes optimiser steps. */
export class Learner {
  readonly parameters: Parameters;
  readonly optimizer: Optimizer;
  readonly engine: TrainingEngine;
  /** Of the weights, if args.ema_decay is set. */
  readonly average: WeightAverage | undefined;
  readonly #model: ViTMSNForImageClassification;
  readonly #args: TrainingArguments;
  readonly #compute_loss: ComputeLoss | undefined;
  readonly #schedule: ScheduleSteps;
  readonly #drop_path_rates: readonly number[];
  /** How many callers use the run's result. */
  #users = 0;
  #is_disposed = false;

  /** @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT. */
  constructor(
    model: ViTMSNForImageClassification,
    args: TrainingArguments,
    max_steps: number,
    compute_loss?: ComputeLoss,
  ) {
    const { num_hidden_layers } = model.config;
    this.engine = training_engine(model);
    this.#model = model;
    this.#args = args;
    this.#compute_loss = compute_loss;
    const { learning_rate } = args;
    this.#schedule = { total: max_steps, warmup: args.get_warmup_steps(max_steps), learning_rate };
    this.parameters = new Parameters(model, { ...args, lora: args.lora_r > 0 ? args : undefined });
    if (this.parameters.trained.length === 0)
      throw new VitMsnError("INVALID_ARGUMENT", "Every parameter is frozen, so there is nothing to train.");
    const top = num_hidden_layers + 1;
    const share = ({ depth }: Parameter) => args.layer_decay ** (top - depth);
    this.optimizer = new Optimizer(this.engine, args, share);
    this.average =
      args.ema_decay > 0
        ? new WeightAverage(this.engine, this.parameters.trained, args.ema_decay)
        : undefined;
    this.#drop_path_rates = drop_path_rates(args.drop_path_rate, num_hidden_layers);
  }

  /**
   * Takes one optimiser step over batches as if they were one batch.
   * @param step the number of optimiser steps done before.
   * @throws VitMsnError DIVERGED if the loss or a gradient isn't finite; the parameters are then unchanged.
   */
  async step(
    batches: readonly Batch[],
    step: number,
    signal: AbortSignal | undefined,
  ): Promise<StepResult | undefined> {
    const counts = batches.map((batch) => this.#counted(batch));
    const examples = counts.reduce((a, b) => a + b, 0);
    if (examples === 0) return undefined;
    const weights = batches.map((batch, i) => this.#weight(batch, counts[i] as number));
    const total = weights.reduce((a, b) => a + b, 0);
    const learning_rate =
      this.#args.learning_rate * learning_rate_factor(this.#args.lr_scheduler_type, step, this.#schedule);
    try {
      const result: StepResult = { loss: 0, examples, correct: 0, grad_norm: 0, learning_rate };
      for (const [i, batch] of batches.entries()) {
        if (counts[i] === 0) continue;
        const share = (weights[i] as number) / total;
        const seed = mix(this.#args.seed ^ mix(step ^ mix(i)));
        const { loss, correct } = await this.#learn_from(batch, share, seed, signal);
        if (!Number.isFinite(loss)) throw diverged("The loss", loss, step, learning_rate);
        result.loss += share * loss;
        result.correct = correct === undefined ? undefined : (result.correct ?? 0) + correct;
      }
      result.grad_norm = await this.parameters.gradient_norm();
      if (!Number.isFinite(result.grad_norm))
        throw diverged("The gradients' norm", result.grad_norm, step, learning_rate);
      this.#update(learning_rate, result.grad_norm);
      return result;
    } finally {
      this.parameters.clear_gradients();
    }
  }

  /** Whether the model's weights, as with_result shows them, differ from the values that learn. */
  get has_own_values(): boolean {
    return (
      this.#model.dtype !== "float32" || this.average !== undefined || this.parameters.adapters !== undefined
    );
  }

  /** Runs `body` while the model has the weights that training results in: averaged and with its adapters merged. */
  async with_result<T>(body: () => Promise<T>): Promise<T> {
    if (this.#is_disposed) return body();
    if (this.#users++ === 0) this.#use_result();
    try {
      return await body();
    } finally {
      if (--this.#users === 0 && !this.#is_disposed) this.#use_learning();
    }
  }

  /** Frees gradients and optimiser; the model keeps the weights that training results in. */
  async dispose(): Promise<void> {
    if (this.#is_disposed) return;
    this.#is_disposed = true;
    this.optimizer.dispose();
    if (this.#users === 0) this.#use_result();
    this.average?.dispose();
    await this.parameters.dispose();
  }

  #use_result(): void {
    this.#swap_average();
    this.parameters.merge_adapters(true);
  }

  #use_learning(): void {
    this.parameters.merge_adapters(false);
    this.#swap_average();
  }

  #swap_average(): void {
    if (this.average === undefined) return;
    this.average.swap();
    this.parameters.write_back();
  }

  #update(learning_rate: number, grad_norm: number): void {
    const gradient_scale = clip_scale(grad_norm, this.#args.max_grad_norm);
    this.optimizer.step(this.parameters.trained, { learning_rate, gradient_scale });
    this.parameters.write_back();
    this.average?.update();
  }

  /** Adds a batch's gradients, scaled by `share`, and returns its loss. */
  async #learn_from(batch: Batch, share: number, seed: number, signal: AbortSignal | undefined) {
    const { config } = this.#model;
    const tape = new Tape(this.engine, this.parameters, {
      layers_per_checkpoint: this.#args.gradient_checkpointing
        ? layers_per_checkpoint(config.num_hidden_layers)
        : 0,
      hidden_dropout_prob: config.hidden_dropout_prob,
      attention_probs_dropout_prob: config.attention_probs_dropout_prob,
      drop_path_rates: this.#drop_path_rates,
      seed,
      signal,
    });
    const { labels } = batch;
    const inputs = inputs_of(batch, signal);
    try {
      return await this.#model.with_logits(
        inputs,
        async (logits, scope) => {
          const values = await tape.read(logits);
          const loss = await this.#differentiate(tape, scope, logits, values, batch, share, signal);
          return { loss, correct: this.#correct(values, labels) };
        },
        tape,
      );
    } finally {
      tape.close();
    }
  }

  /** The batch's loss, whose gradients, scaled by `share`, go to the parameters if it is finite. */
  async #differentiate(
    tape: Tape,
    scope: Scope,
    logits: TensorHandle,
    values: Float32Array,
    batch: Batch,
    share: number,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    const { config } = this.#model;
    const { labels } = batch;
    const own_loss = this.#own_loss(labels);
    if (own_loss === undefined) {
      const smoothing = this.#args.label_smoothing_factor;
      const handle = training_loss(tape, scope, logits, labels as Tensor, config, smoothing);
      const loss = (await tape.read(handle))[0] as number;
      if (Number.isFinite(loss)) await tape.backward(handle, share);
      return loss;
    }
    const inputs = { logits: new Tensor("float32", values, tape.dims(logits)), labels, batch, signal };
    const { loss, gradient } = await call_loss(own_loss, inputs);
    const scaled = gradient.data.map((x) => share * x);
    if (Number.isFinite(loss))
      await tape.backward_from(logits, scope.use(tape.tensor(scaled, gradient.dims)));
    return loss;
  }

  #own_loss(labels: Tensor | undefined): ComputeLoss | undefined {
    const { label_smoothing_factor: label_smoothing, class_weights } = this.#args;
    const { config } = this.#model;
    return loss_in_javascript(
      { config, compute_loss: this.#compute_loss, label_smoothing, class_weights },
      labels,
    );
  }

  #correct(logits: Float32Array, labels: Tensor | undefined): number | undefined {
    const { config } = this.#model;
    if (labels === undefined) return undefined;
    if (problem_type_of(labels, config) !== "single_label_classification") return undefined;
    if (is_soft(labels)) {
      const wanted = argmax_rows(labels.data as Float32Array, config.num_labels);
      return argmax_rows(logits, config.num_labels).filter((best, row) => best === wanted[row]).length;
    }
    return count_correct(logits, labels, config.num_labels).correct;
  }

  /** How many images of a batch count. */
  #counted({ labels, pixel_values }: Batch): number {
    const images = pixel_values.dims[0] as number;
    if (labels === undefined) {
      if (this.#compute_loss !== undefined) return images;
      throw new VitMsnError("INVALID_ARGUMENT", "The training data has no labels.", {
        details: { argument: "train_dataset" },
      });
    }
    const has_classes = problem_type_of(labels, this.#model.config) === "single_label_classification";
    if (!has_classes || is_soft(labels)) return images;
    return numbers_of(labels).filter((label) => label !== IGNORED).length;
  }

  /** A batch's weight in the mean over the batches of a step: its images, or their classes' weights. */
  #weight(batch: Batch, counted: number): number {
    const { class_weights } = this.#args;
    const { labels } = batch;
    if (class_weights === undefined || labels === undefined || is_soft(labels) || this.#compute_loss)
      return counted;
    return total_weight(labels, class_weights);
  }
}

/** Stochastic depth's rate for each layer, which grows linearly from 0 to `rate` in the last one, as in timm. */
export function drop_path_rates(rate: number, layers: number): number[] {
  return Array.from({ length: layers }, (_, layer) => (layer * rate) / Math.max(1, layers - 1));
}

/** A batch as the model's forward pass takes it. */
export function inputs_of(
  { pixel_values, interpolate_pos_encoding = false }: Batch,
  signal: AbortSignal | undefined,
): ForwardInputs {
  return {
    pixel_values,
    interpolate_pos_encoding,
    output_attentions: false,
    output_hidden_states: false,
    ...(signal && { signal }),
  };
}

/** The factor that clips gradients of this norm; a `max_grad_norm` of 0 disables clipping. */
export function clip_scale(grad_norm: number, max_grad_norm: number): number {
  const is_clipped = max_grad_norm > 0 && grad_norm + CLIP_EPSILON > max_grad_norm;
  return is_clipped ? max_grad_norm / (grad_norm + CLIP_EPSILON) : 1;
}

export function diverged(what: string, value: number, step: number, learning_rate: number): VitMsnError {
  return new VitMsnError(
    "DIVERGED",
    `${what} is ${value} at step ${step + 1} (learning rate ${learning_rate.toPrecision(3)}), so training stopped; this step ` +
      "didn't change the model. A lower learning_rate, a longer warm-up or a smaller max_grad_norm usually helps.",
    { details: { step: step + 1, learning_rate } },
  );
}
