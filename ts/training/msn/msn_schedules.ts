import type { MSNPretrainingArguments } from "./msn_arguments.ts";

/** What changes from step to step of a pre-training run. */
export interface MSNStepRates {
  learning_rate: number;
  weight_decay: number;
  /** How much of itself the target keeps. */
  ema_momentum: number;
  /** Temperature that sharpens targets. */
  sharpen: number;
}

export interface MSNScheduleSteps {
  /** Steps in all. */
  total: number;
  /** Steps over which the learning rate rises. */
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
 * The rates of step `step`, 0 for the first. The learning rate rises in a line and falls along a cosine; weight decay goes
 * along a cosine; momentum and sharpening in a line. All are made for `schedule_stretch` times as many steps as there are.
 *
 * Source: WarmupCosineSchedule, CosineWDSchedule and momentum_scheduler of facebookresearch/msn, whose step counts begin at 1
 * for the first two and at 0 for the others.
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
