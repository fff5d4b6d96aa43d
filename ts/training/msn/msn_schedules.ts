import type { MSNPretrainingArguments } from "./msn_arguments.ts";

/** The rates that change from step to step of a pre-training run. */
export interface MSNStepRates {
  learning_rate: number;
  weight_decay: number;
  /** Momentum of the target's moving average. */
  ema_momentum: number;
  /** Temperature that sharpens the targets. */
  sharpen: number;
}

export interface MSNScheduleSteps {
  /** Steps in all. */
  total: number;
  /** Warm-up steps. */
  warmup: number;
}

type ScheduleOptions = Pick<
  MSNPretrainingArguments,
  | "learning_rate"
  | "start_learning_rate"
  | "final_learning_rate"
  | "weight_decay"
  | "final_weight_decay"
  | "ema_momentum"
  | "final_ema_momentum"
  | "start_sharpen"
  | "final_sharpen"
  | "schedule_stretch"
>;

/**
 * The rates of step `step`, 0 for the first. The learning rate rises linearly and falls along a cosine;
 * weight decay follows a cosine; momentum and sharpening are linear. All schedules are `schedule_stretch`
 * times as long as the run.
 *
 * Source: WarmupCosineSchedule, CosineWDSchedule and momentum_scheduler of facebookresearch/msn, which count
 * steps from 1 for the first two and from 0 for the others.
 */
export function msn_rates(
  args: ScheduleOptions,
  step: number,
  { total, warmup }: MSNScheduleSteps,
): MSNStepRates {
  const stretched = total * args.schedule_stretch;
  const whole = Math.max(1, Math.trunc(stretched));
  const done = step + 1;
  const along = (first: number, last: number) => first + ((last - first) / stretched) * step;
  return {
    learning_rate: learning_rate(args, done, warmup, whole),
    weight_decay: half_cosine(args.weight_decay, args.final_weight_decay, Math.min(1, done / whole)),
    ema_momentum: Math.min(1, along(args.ema_momentum, args.final_ema_momentum)),
    sharpen: along(args.start_sharpen, args.final_sharpen),
  };
}

function learning_rate(args: ScheduleOptions, done: number, warmup: number, whole: number): number {
  const { start_learning_rate: start, learning_rate: top, final_learning_rate: final } = args;
  if (done < warmup) return start + (done / Math.max(1, warmup)) * (top - start);
  const progress = (done - warmup) / Math.max(1, whole - warmup);
  return half_cosine(top, final, Math.min(1, progress));
}

function half_cosine(start: number, end: number, progress: number): number {
  return end + ((start - end) / 2) * (1 + Math.cos(Math.PI * progress));
}
