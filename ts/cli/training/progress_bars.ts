import type { SingleBar } from "cli-progress";
import type {
  LogEvent,
  MSNLogEvent,
  MSNPretrainerCallback,
  MSNPretrainerEvent,
  MSNStepEvent,
  PredictionEvent,
  StepEvent,
  TrainerCallback,
  TrainerEvent,
} from "../../training/index.ts";
import { make_bar } from "../progress_bars.ts";

/** A bar for a training run's steps and for each evaluation; without a terminal, a line for each log entry. */
export class TrainingBars implements TrainerCallback {
  readonly #quiet: boolean;
  #training: SingleBar | undefined;
  #evaluation: SingleBar | undefined;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  on_train_begin({ state }: TrainerEvent): void {
    this.#training = this.#bar("training [{bar}] {value}/{total} steps | {facts}");
    this.#training?.start(state.max_steps, state.global_step, { facts: "" });
  }

  on_step_end({ state, loss, accuracy, learning_rate, eta_seconds }: StepEvent): void {
    const facts = [
      `loss ${loss.toFixed(4)}`,
      ...(accuracy === undefined ? [] : [`accuracy ${accuracy.toFixed(3)}`]),
      `learning rate ${learning_rate.toExponential(2)}`,
      `${format_duration(eta_seconds)} left`,
    ];
    this.#training?.update(state.global_step, { facts: facts.join(" | ") });
  }

  on_prediction_step({ batches_done, batches = 0 }: PredictionEvent): void {
    if (this.#evaluation === undefined) {
      this.#evaluation = this.#bar("evaluation [{bar}] {value}/{total} batches");
      this.#evaluation?.start(batches, 0);
    }
    this.#evaluation?.update(batches_done);
    if (batches_done < batches) return;
    this.#evaluation?.stop();
    this.#evaluation = undefined;
  }

  on_log({ state, logs }: LogEvent): void {
    if (!this.#quiet && !process.stderr.isTTY) log_line(state, logs);
  }

  on_train_end(): void {
    this.stop();
  }

  stop(): void {
    this.#evaluation?.stop();
    this.#training?.stop();
    this.#evaluation = undefined;
    this.#training = undefined;
  }

  #bar(format: string): SingleBar | undefined {
    return make_bar(this.#quiet, { format, clearOnComplete: false });
  }
}

/** A bar for a pre-training run's steps; without a terminal, a line for each log entry. */
export class PretrainingBars implements MSNPretrainerCallback {
  readonly #quiet: boolean;
  #bar: SingleBar | undefined;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  on_train_begin({ state }: MSNPretrainerEvent): void {
    this.#bar = make_bar(this.#quiet, {
      format: "pre-training [{bar}] {value}/{total} steps | {facts}",
      clearOnComplete: false,
    });
    this.#bar?.start(state.max_steps, state.global_step, { facts: "" });
  }

  on_step_end({ state, args, loss, prototypes_used, learning_rate, eta_seconds }: MSNStepEvent): void {
    const facts = [
      `loss ${loss.toFixed(4)}`,
      `${prototypes_used}/${args.num_proto} prototypes`,
      `learning rate ${learning_rate.toExponential(2)}`,
      `${format_duration(eta_seconds)} left`,
    ];
    this.#bar?.update(state.global_step, { facts: facts.join(" | ") });
  }

  on_log({ state, logs }: MSNLogEvent): void {
    if (!this.#quiet && !process.stderr.isTTY) log_line(state, logs);
  }

  on_train_end(): void {
    this.stop();
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}

function log_line(
  { global_step, max_steps }: { global_step: number; max_steps: number },
  logs: Readonly<Record<string, number>>,
): void {
  const facts = Object.entries(logs).filter(([name]) => name !== "step");
  const shown = facts.map(([name, value]) => `${name} ${Number(value.toPrecision(5))}`).join(", ");
  process.stderr.write(`step ${global_step}/${max_steps}: ${shown}\n`);
}

function format_duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes > 0 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.round(seconds)} s`;
}
