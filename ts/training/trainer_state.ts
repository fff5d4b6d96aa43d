/** One entry of the log: numbers by name, with the step and epoch they belong to. */
export type LogEntry = Readonly<Record<string, number>> & { readonly step: number; readonly epoch: number };

/** Sums over the steps since the last entry of the log. */
export interface RunningSums {
  steps: number;
  loss: number;
  /** Pictures, and how many of them were classified rightly. */
  examples: number;
  correct: number;
}

/** Where a training run is: what trainer_state.json holds, with transformers' names where it has them. */
export interface TrainerState {
  /** Optimiser steps done. */
  global_step: number;
  /** Optimiser steps in all. */
  max_steps: number;
  /** Epochs in all, the last of which may be a part of one. */
  num_train_epochs: number;
  /** Epochs done, as a fraction. */
  epoch: number;
  train_batch_size: number;
  /** Examples of an epoch; null for a stream. */
  num_examples: number | null;
  log_history: LogEntry[];
  best_metric: number | null;
  best_global_step: number | null;
  /** The folder's name in output_dir. */
  best_model_checkpoint: string | null;
  /** Whole epochs done, and batches used of the one after: where the data goes on. */
  epochs_done: number;
  batches_done: number;
  /** Sums of the loss over all steps, and since the last entry of the log. */
  total_loss: number;
  running: RunningSums;
  /** What callbacks keep, by their names. */
  stateful_callbacks: Record<string, unknown>;
}

export function fresh_sums(): RunningSums {
  return { steps: 0, loss: 0, examples: 0, correct: 0 };
}
