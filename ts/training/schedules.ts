/** Learning-rate schedules, by transformers' names. */
export const SCHEDULES = [
  "linear",
  "cosine",
  "polynomial",
  "constant",
  "constant_with_warmup",
  "one_cycle",
] as const;
export type Schedule = (typeof SCHEDULES)[number];

export interface ScheduleSteps {
  /** Optimiser steps in all. */
  total: number;
  /** Warm-up steps, over which the learning rate rises. */
  warmup: number;
  /** The maximum learning rate; default 5e-5. "polynomial" ends at a fixed rate, not at a share of it. */
  learning_rate?: number;
}

/** Where "polynomial" ends. */
export const POLYNOMIAL_END = 1e-7;

/** torch's OneCycleLR starts at 1/25 of the maximum rate and ends at 1/10,000 of its start. */
const ONE_CYCLE_START = 1 / 25;
const ONE_CYCLE_END = ONE_CYCLE_START / 1e4;

/**
 * The factor on the learning rate at optimiser step `step` (0 for the first).
 *
 * - "linear": rises from 0 over the warm-up, then falls to 0.
 * - "cosine": rises in the same way, then falls along half a cosine.
 * - "polynomial": rises in the same way, then falls linearly to the learning rate 1e-7: transformers' lr_end, with its
 *   power of 1.
 * - "constant": 1, without warm-up. "constant_with_warmup": rises, then 1.
 * - "one_cycle": rises along half a cosine from 1/25, then falls along another to 1/250,000; only the
 *   learning rate, as torch's with cycle_momentum = False.
 *
 * Source: transformers' optimization.py; torch's OneCycleLR.
 */
export function learning_rate_factor(schedule: Schedule, step: number, steps: ScheduleSteps): number {
  const { total, warmup, learning_rate = 5e-5 } = steps;
  if (schedule === "constant") return 1;
  if (schedule === "one_cycle") return one_cycle_factor(step, steps);
  if (step < warmup) return step / Math.max(1, warmup);
  const progress = (step - warmup) / Math.max(1, total - warmup);
  switch (schedule) {
    case "constant_with_warmup":
      return 1;
    case "linear":
      return Math.max(0, 1 - progress);
    case "cosine":
      return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
    case "polynomial": {
      const end = POLYNOMIAL_END / learning_rate;
      return end + (1 - end) * Math.max(0, 1 - progress);
    }
  }
}

function one_cycle_factor(step: number, { total, warmup }: ScheduleSteps): number {
  const top = Math.max(0, warmup - 1);
  const last = Math.max(total - 1, top + 1);
  if (step < top) return along_cosine(ONE_CYCLE_START, 1, step / top);
  return along_cosine(1, ONE_CYCLE_END, Math.min(1, (step - top) / (last - top)));
}

function along_cosine(start: number, end: number, progress: number): number {
  return end + ((start - end) / 2) * (1 + Math.cos(Math.PI * progress));
}
