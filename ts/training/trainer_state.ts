/** One entry of the log: numbers by name, with the step and epoch they belong to. */
export type LogEntry = Readonly<Record<string, number>> & { readonly step: number; readonly epoch: number };

/** Sums over the steps since the last entry of the log. */
export interface RunningSums {
  steps: number;
  loss: number;
  /** Images, and how many of them were classified correctly. */
  examples: number;
  correct: number;
}

/** The progress of any kind of run. */
export interface LoopState {
  /** Optimiser steps done. */
  global_step: number;
  /** Optimiser steps in all. */
  max_steps: number;
  /** Epochs in all, the last of which may be partial. */
  num_train_epochs: number;
  /** Epochs done, as a fraction. */
  epoch: number;
  train_batch_size: number;
  /** Examples of an epoch; null for a stream. */
  num_examples: number | null;
  /** An entry for each time that something was logged; the last is the whole run's. */
  log_history: LogEntry[];
  /** Whole epochs done, and batches used of the next one: where the data resumes. */
  epochs_done: number;
  batches_done: number;
  /** The sum of the loss over all steps. */
  total_loss: number;
  /** Sums since the last entry of the log. */
  running: { steps: number };
  /** What callbacks store in checkpoints, by their names. */
  stateful_callbacks: Record<string, unknown>;
}

/**
 * The progress of a training run, as trainer_state.json holds it, with transformers' names if it has them.
 */
export interface TrainerState extends LoopState {
  best_metric: number | null;
  best_global_step: number | null;
  /** The folder's name in output_dir. */
  best_model_checkpoint: string | null;
  running: RunningSums;
}

export function fresh_sums(): RunningSums {
  return { steps: 0, loss: 0, examples: 0, correct: 0 };
}

/** What every state starts from. */
export function fresh_progress(): Omit<LoopState, "running"> {
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
    stateful_callbacks: {},
  };
}

export function fresh_state(): TrainerState {
  return {
    ...fresh_progress(),
    best_metric: null,
    best_global_step: null,
    best_model_checkpoint: null,
    running: fresh_sums(),
  };
}
