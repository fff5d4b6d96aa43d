import type { LogEntry } from "../trainer_state.ts";

/** What an entry of the log is the mean of, over the steps since the entry before. */
export const MSN_MEANS = [
  "loss",
  "cross_entropy",
  "me_max",
  "entropy",
  "mean_entropy",
  "target_max",
  "target_similarity",
  "grad_norm",
] as const;
export type MSNMean = (typeof MSN_MEANS)[number];

/** Sums over the steps since the last entry of the log. */
export type MSNRunningSums = Record<MSNMean | "steps", number>;

/** Where a pre-training run is: what trainer_state.json holds. */
export interface MSNPretrainerState {
  /** Steps done. */
  global_step: number;
  /** Steps in all. */
  max_steps: number;
  /** Epochs in all, the last of which may be a part of one. */
  num_train_epochs: number;
  /** Epochs done, as a fraction. */
  epoch: number;
  train_batch_size: number;
  /** Pictures of an epoch; null for a stream. */
  num_examples: number | null;
  /** One entry every logging_steps, see MSNLogs; the last is the whole run's. */
  log_history: LogEntry[];
  /** Whole epochs done, and batches used of the one after: where the data goes on. */
  epochs_done: number;
  batches_done: number;
  /** The sum of the loss over all steps. */
  total_loss: number;
  running: MSNRunningSums;
  /** For each prototype the last step, from 1, at which it was some picture's first target; 0 where it never was. */
  prototypes_last_used: number[];
  /** The step at which a collapse was noticed that isn't over; null for none. */
  collapsed_since: number | null;
  /** What callbacks keep, by their names. */
  stateful_callbacks: Record<string, unknown>;
}

/** What an entry of log_history says, beside step and epoch. */
export interface MSNLogs extends Record<MSNMean, number> {
  learning_rate: number;
  weight_decay: number;
  ema_momentum: number;
  /** Prototypes that were some picture's first target within the last usage_window steps. */
  prototypes_used: number;
}

export function fresh_msn_sums(): MSNRunningSums {
  return Object.fromEntries([...MSN_MEANS, "steps"].map((name) => [name, 0])) as MSNRunningSums;
}

export function fresh_msn_state(num_proto: number): MSNPretrainerState {
  return {
    global_step: 0,
    max_steps: 0,
    num_train_epochs: 0,
    epoch: 0,
    train_batch_size: 0,
    num_examples: null,
    log_history: [],
    epochs_done: 0,
    batches_done: 0,
    total_loss: 0,
    running: fresh_msn_sums(),
    prototypes_last_used: new Array<number>(num_proto).fill(0),
    collapsed_since: null,
    stateful_callbacks: {},
  };
}
