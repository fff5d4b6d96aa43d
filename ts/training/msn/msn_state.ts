import { fresh_progress, type LoopState } from "../trainer_state.ts";

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

/** The progress of a pre-training run, as trainer_state.json holds it. */
export interface MSNPretrainerState extends LoopState {
  running: MSNRunningSums;
  /**
   * For each prototype, the last step (counted from 1) at which it was some image's first target; 0 for
   * never.
   */
  prototypes_last_used: number[];
  /** The step at which a collapse was noticed that isn't over; null for none. */
  collapsed_since: number | null;
}

/** What an entry of log_history holds, in addition to step and epoch. */
export interface MSNLogs extends Record<MSNMean, number> {
  learning_rate: number;
  weight_decay: number;
  ema_momentum: number;
  /** Prototypes that were some image's first target within the last usage_window steps. */
  prototypes_used: number;
  /**
   * Of the last step's features, the target's CLS tokens: exp of the entropy of their normalised singular values (Roy &
   * Vetterli, 2007). At most B − 1; it falls towards 1 as features collapse onto a line, and is 0 if all are equal.
   */
  effective_rank: number;
}

export function fresh_msn_sums(): MSNRunningSums {
  return Object.fromEntries([...MSN_MEANS, "steps"].map((name) => [name, 0])) as MSNRunningSums;
}

export function fresh_msn_state(num_proto: number): MSNPretrainerState {
  return {
    ...fresh_progress(),
    running: fresh_msn_sums(),
    prototypes_last_used: new Array<number>(num_proto).fill(0),
    collapsed_since: null,
  };
}
