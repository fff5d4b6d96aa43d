import type { MSNPretrainingArguments } from "./msn_arguments.ts";
import type { MSNStepTimes } from "./msn_learner.ts";
import type { MSNStepRates } from "./msn_schedules.ts";
import type { MSNMean, MSNPretrainerState } from "./msn_state.ts";

/** What a callback may ask for; each is done once and then false again, but the stop. */
export interface MSNPretrainerControl {
  should_log: boolean;
  should_save: boolean;
  /** Ends the run after this step. */
  should_training_stop: boolean;
}

/** What every callback is told. */
export interface MSNPretrainerEvent {
  readonly args: MSNPretrainingArguments;
  readonly state: MSNPretrainerState;
  readonly control: MSNPretrainerControl;
}

/**
 * One step: its loss and terms (cross_entropy, me_max, entropy), what tells of collapse, and its rates.
 *
 * - mean_entropy: of the mean prediction of all anchors, in nats; log(num_proto) where all prototypes are used alike.
 * - target_max: the mean over pictures of their target's largest probability.
 * - target_similarity: the mean cosine between the target projections of two different pictures; near 1 where all look the same.
 * - grad_norm: before clipping.
 */
export interface MSNStepEvent
  extends MSNPretrainerEvent,
    Readonly<Record<MSNMean, number>>,
    Readonly<MSNStepRates> {
  /** Prototypes that were some picture's first target within the last usage_window steps. */
  readonly prototypes_used: number;
  /** Seconds that the remaining steps will take, saving not counted. */
  readonly eta_seconds: number;
  /** Seconds that the step took, and that it waited for views before. */
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

/** Pictures are about to become all the same to the model. */
export interface MSNCollapseEvent extends MSNPretrainerEvent {
  /** What was seen and what may help, as the warning says it. */
  readonly message: string;
  readonly prototypes_used: number;
  readonly target_similarity: number;
}

/** Is told how a pre-training run goes, and may steer it by `control`; as the Trainer's TrainerCallback. */
export interface MSNPretrainerCallback {
  on_train_begin?(event: MSNPretrainerEvent): void | Promise<void>;
  on_epoch_begin?(event: MSNPretrainerEvent): void | Promise<void>;
  on_step_end?(event: MSNStepEvent): void | Promise<void>;
  on_log?(event: MSNLogEvent): void | Promise<void>;
  /** Once each time that a collapse begins; env.warn has said it. */
  on_collapse?(event: MSNCollapseEvent): void | Promise<void>;
  on_save?(event: MSNSaveEvent): void | Promise<void>;
  on_epoch_end?(event: MSNPretrainerEvent): void | Promise<void>;
  on_train_end?(event: MSNPretrainerEvent): void | Promise<void>;
  /** Names what `state` keeps in checkpoints. */
  readonly state_name?: string;
  /** What to keep in checkpoints, as JSON. */
  state?(): unknown;
  /** Takes it over when the run is resumed. */
  load_state?(state: unknown): void;
}
