import type { MSNPretrainingArguments } from "./msn_arguments.ts";
import type { MSNStepTimes } from "./msn_learner.ts";
import type { MSNStepRates } from "./msn_schedules.ts";
import type { MSNMean, MSNPretrainerState } from "./msn_state.ts";

/** Requests that a callback may make. Each but the stop is reset to false once it is carried out. */
export interface MSNPretrainerControl {
  should_log: boolean;
  should_save: boolean;
  /** Ends the run after this step. */
  should_training_stop: boolean;
}

/** The fields of every event. */
export interface MSNPretrainerEvent {
  readonly args: MSNPretrainingArguments;
  readonly state: MSNPretrainerState;
  readonly control: MSNPretrainerControl;
}

/**
 * One step: its loss and terms (cross_entropy, me_max, entropy), signs of collapse, and its rates.
 *
 * - mean_entropy: of the mean prediction of all anchors, in nats; log(num_proto) if all prototypes are used
 *   equally.
 * - target_max: the mean over images of the target's largest probability.
 * - target_similarity: the mean cosine between the target projections of two different images; near 1 if
 *   all look the same.
 * - grad_norm: before clipping.
 */
export interface MSNStepEvent
  extends MSNPretrainerEvent,
    Readonly<Record<MSNMean, number>>,
    Readonly<MSNStepRates> {
  /** Prototypes that were some image's first target within the last usage_window steps. */
  readonly prototypes_used: number;
  /** Estimated seconds for the remaining steps, without saving. */
  readonly eta_seconds: number;
  /** Seconds that the step took, and seconds that it first waited for its views. */
  readonly step_seconds: number;
  readonly data_seconds: number;
  /** Where the step's time went, in milliseconds. */
  readonly times: Readonly<MSNStepTimes>;
}

export interface MSNLogEvent extends MSNPretrainerEvent {
  readonly logs: Readonly<Record<string, number>>;
}

export interface MSNSaveEvent extends MSNPretrainerEvent {
  /** The folder's name in output_dir. */
  readonly checkpoint: string;
}

/** The model begins to map all images to the same output. */
export interface MSNCollapseEvent extends MSNPretrainerEvent {
  /** The text of the warning: what was observed, and what may help. */
  readonly message: string;
  readonly prototypes_used: number;
  readonly target_similarity: number;
}

/** Follows a pre-training run, and may steer it by `control`, like the Trainer's TrainerCallback. */
export interface MSNPretrainerCallback {
  on_train_begin?(event: MSNPretrainerEvent): void | Promise<void>;
  on_epoch_begin?(event: MSNPretrainerEvent): void | Promise<void>;
  on_step_end?(event: MSNStepEvent): void | Promise<void>;
  on_log?(event: MSNLogEvent): void | Promise<void>;
  /** Each time that a collapse begins, after env.warn has reported it. */
  on_collapse?(event: MSNCollapseEvent): void | Promise<void>;
  on_save?(event: MSNSaveEvent): void | Promise<void>;
  on_epoch_end?(event: MSNPretrainerEvent): void | Promise<void>;
  on_train_end?(event: MSNPretrainerEvent): void | Promise<void>;
  /** The key of `state` in checkpoints. */
  readonly state_name?: string;
  /** What to store in checkpoints, as JSON. */
  state?(): unknown;
  /** Restores it when the run is resumed. */
  load_state?(state: unknown): void;
}
