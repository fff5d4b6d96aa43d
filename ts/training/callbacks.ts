import { VitMsnError } from "../errors.ts";
import { check_options, count } from "../options.ts";
import type { TrainerState } from "./trainer_state.ts";
import type { TrainingArguments } from "./training_arguments.ts";

/** Requests that a callback may make. Each but the stop is reset to false once it is carried out. */
export interface TrainerControl {
  should_log: boolean;
  should_evaluate: boolean;
  should_save: boolean;
  /** Ends the training after this step. */
  should_training_stop: boolean;
}

/** The fields of every event. */
export interface TrainerEvent {
  readonly args: TrainingArguments;
  readonly state: TrainerState;
  readonly control: TrainerControl;
}

/** One optimiser step. */
export interface StepEvent extends TrainerEvent {
  /** The mean over the step's images. */
  readonly loss: number;
  /**
   * The share of the step's images that were classified correctly before the step; undefined if there are no
   * classes.
   */
  readonly accuracy: number | undefined;
  /** The gradients' norm before clipping. */
  readonly grad_norm: number;
  readonly learning_rate: number;
  /** Estimated seconds for the remaining steps, without evaluation and saving. */
  readonly eta_seconds: number;
}

export interface LogEvent extends TrainerEvent {
  readonly logs: Readonly<Record<string, number>>;
}

export interface EvaluateEvent extends TrainerEvent {
  readonly metrics: Readonly<Record<string, number>>;
}

export interface SaveEvent extends TrainerEvent {
  /** The folder's name in output_dir. */
  readonly checkpoint: string;
}

export interface PredictionEvent extends TrainerEvent {
  /** Batches done, and in all (undefined for a stream). */
  readonly batches_done: number;
  readonly batches: number | undefined;
}

/** Follows a training run, and may steer it by `control`; transformers' TrainerCallback. */
export interface TrainerCallback {
  on_train_begin?(event: TrainerEvent): void | Promise<void>;
  on_epoch_begin?(event: TrainerEvent): void | Promise<void>;
  on_step_end?(event: StepEvent): void | Promise<void>;
  on_log?(event: LogEvent): void | Promise<void>;
  on_evaluate?(event: EvaluateEvent): void | Promise<void>;
  /** After each batch of an evaluation or prediction. */
  on_prediction_step?(event: PredictionEvent): void | Promise<void>;
  on_save?(event: SaveEvent): void | Promise<void>;
  on_epoch_end?(event: TrainerEvent): void | Promise<void>;
  on_train_end?(event: TrainerEvent): void | Promise<void>;
  /** The key of `state` in checkpoints. */
  readonly state_name?: string;
  /** What to store in checkpoints, as JSON. */
  state?(): unknown;
  /** Restores it when training is resumed. */
  load_state?(state: unknown): void;
}

/** Stops when evaluation hasn't improved for a while. */
export class EarlyStoppingCallback implements TrainerCallback {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "EarlyStoppingCallback";
  readonly state_name = "EarlyStoppingCallback";
  readonly #patience: number;
  readonly #threshold: number;
  #evaluations_without_gain = 0;

  /**
   * @param options.early_stopping_patience the number of evaluations without improvement after which to
   *   stop; default 1.
   * @param options.early_stopping_threshold how much the metric must improve to count; default 0.
   */
  constructor(options: { early_stopping_patience?: number; early_stopping_threshold?: number } = {}) {
    check_options("EarlyStoppingCallback", options, {
      early_stopping_patience: count,
      early_stopping_threshold: [
        "a number of 0 or more",
        (value) => Number.isFinite(value) && (value as number) >= 0,
      ],
    });
    this.#patience = options.early_stopping_patience ?? 1;
    this.#threshold = options.early_stopping_threshold ?? 0;
  }

  on_train_begin({ args }: TrainerEvent): void {
    if (args.eval_strategy === "no") {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        'EarlyStoppingCallback needs an eval_strategy other than "no".',
      );
    }
  }

  on_evaluate({ args, state, control, metrics }: EvaluateEvent): void {
    const metric = metrics[`eval_${args.metric_for_best_model}`] as number;
    const gain =
      state.best_metric === null
        ? Number.POSITIVE_INFINITY
        : (metric - state.best_metric) * (args.greater_is_better ? 1 : -1);
    this.#evaluations_without_gain = gain > this.#threshold ? 0 : this.#evaluations_without_gain + 1;
    if (this.#evaluations_without_gain >= this.#patience) control.should_training_stop = true;
  }

  state(): unknown {
    return { evaluations_without_gain: this.#evaluations_without_gain };
  }

  load_state(state: unknown): void {
    const { evaluations_without_gain } = (state ?? {}) as { evaluations_without_gain?: unknown };
    if (Number.isInteger(evaluations_without_gain))
      this.#evaluations_without_gain = evaluations_without_gain as number;
  }
}
