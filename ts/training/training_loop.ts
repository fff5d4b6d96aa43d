import { hold_output_folder, open_output_folder } from "#folders";
import { save_files } from "#save";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { PretrainedSource } from "../loading/types.ts";
import { check_options } from "../options.ts";
import { checkpoint_name, json, remove_old_checkpoints, STATE_FILE } from "./checkpoint.ts";
import type { Collator } from "./data/collate.ts";
import { DataLoader } from "./data/data_loader.ts";
import type { TrainingData } from "./data/dataset.ts";
import type { OutputFolder } from "./folders/folder_types.ts";
import { TRAIN_RULES } from "./option_rules.ts";
import { make_plan, type Plan } from "./plan.ts";
import {
  find_checkpoint,
  output_dir_of,
  type ResumeOptions,
  type RunOrigin,
  report_changes,
} from "./resuming.ts";
import { speed_metrics } from "./speed_metrics.ts";
import type { LogEntry, LoopState } from "./trainer_state.ts";
import type { SamplingStrategy, Strategy } from "./training_arguments.ts";

/** The arguments that every kind of training has. */
interface LoopArguments {
  readonly output_dir?: SaveDirectory | undefined;
  readonly num_train_epochs: number;
  readonly max_steps: number;
  readonly per_device_train_batch_size: number;
  /** Default 1. */
  readonly gradient_accumulation_steps?: number;
  readonly dataloader_drop_last: boolean;
  /** Default "random". */
  readonly train_sampling_strategy?: SamplingStrategy;
  readonly data_seed: number;
  /** Default "steps". */
  readonly logging_strategy?: Strategy;
  readonly logging_steps: number;
  readonly logging_first_step: boolean;
  readonly save_strategy: Strategy;
  readonly save_steps: number;
  readonly save_total_limit?: number | undefined;
  to_dict(): Record<string, unknown>;
}

/** What every event holds, and what the loop reads and writes. */
interface LoopEvent {
  readonly args: LoopArguments;
  readonly state: LoopState;
  readonly control: { should_log: boolean; should_save: boolean; should_training_stop: boolean };
}

/** The callbacks, as far as the loop calls them. */
interface LoopCallbacks<Event> {
  emit(
    name: "on_train_begin" | "on_epoch_begin" | "on_epoch_end" | "on_train_end",
    event: Event,
  ): Promise<void>;
  emit(name: "on_log", event: Event & { readonly logs: LogEntry }): Promise<void>;
  emit(name: "on_save", event: Event & { readonly checkpoint: string }): Promise<void>;
  save_states(states: Record<string, unknown>): void;
  load_states(states: Readonly<Record<string, unknown>>): void;
}

/** The duration of a step, of the wait for its data, and the estimate for the remaining steps, in seconds. */
export interface StepTimes {
  step_seconds: number;
  data_seconds: number;
  eta_seconds: number;
}

/** What a run begins with: its learner, and the state to start from. */
export interface Begun<Learner, State extends LoopState = LoopState> {
  learner: Learner;
  state: State;
}

/** What a kind of training does within the loop. */
export interface TrainingHooks<Learner, Batch, Checkpoint, Result> {
  /** @throws VitMsnError INVALID_ARGUMENT if data that the run needs is missing. */
  data(): TrainingData;
  collate: Collator<Batch>;
  read_checkpoint(source: PretrainedSource): Promise<Checkpoint>;
  /** Makes the learner, restores the checkpoint into it, and returns the state to start from. */
  begin(plan: Plan, checkpoint: Checkpoint | undefined): Promise<Begun<Learner>>;
  /** Learns from the batches of one step; undefined if they held nothing to learn from. */
  step(
    learner: Learner,
    batches: readonly Batch[],
    signal: AbortSignal | undefined,
  ): Promise<Result | undefined>;
  /** Adds a step to the running sums and calls on_step_end. */
  end_step(result: Result, times: StepTimes): Promise<void>;
  /** The means over the running sums, which start again from zero. */
  take_logs(result: Result): Record<string, number>;
  /** Evaluates, if that is due at this moment. */
  evaluate?(moment: "start" | "step" | "epoch", signal: AbortSignal | undefined): Promise<void>;
  /** Writes the checkpoint of this name into a folder. */
  save(learner: Learner, directory: SaveDirectory, name: string): Promise<void>;
  /** A checkpoint that save_total_limit must not remove. */
  best_checkpoint?(): string | null;
  /** Called after the last step; `folder` holds the checkpoints. */
  end?(learner: Learner, folder: OutputFolder | undefined): Promise<void>;
  /** Called after the run, even if it failed. */
  close?(learner: Learner): Promise<void>;
}

export interface LoopOptions<Learner, Batch, Checkpoint, Result, Event> {
  /** The class whose train() this is, for messages. */
  owner: string;
  /** What it does, for messages. */
  activity: string;
  /** The options that save memory, for messages. */
  saves_memory: string;
  /** Whether batches without a readable image count as a step, or are only used up. */
  counts_empty_steps: boolean;
  event: Event;
  callbacks: LoopCallbacks<Event>;
  hooks: TrainingHooks<Learner, Batch, Checkpoint, Result>;
}

/** Options of a call of train(). */
export interface TrainCallOptions extends ResumeOptions {
  signal?: AbortSignal;
}

/** What train() returns. */
export interface TrainOutput {
  global_step: number;
  /** The mean over all steps. */
  training_loss: number;
  metrics: Record<string, number>;
}

/** A call of train(). */
interface Run<Learner, Batch, Result> {
  learner: Learner;
  loader: DataLoader<Batch>;
  plan: Plan;
  folder: OutputFolder | undefined;
  started: number;
  /** global_step when it began. */
  first_step: number;
  signal: AbortSignal | undefined;
  last_result: Result | undefined;
}

/** Epochs and steps, and when to log, evaluate and save: what fine-tuning and pre-training share. */
export class TrainingLoop<Learner, Batch, Checkpoint extends RunOrigin, Result, Event extends LoopEvent> {
  readonly #options: LoopOptions<Learner, Batch, Checkpoint, Result, Event>;
  #is_training = false;

  constructor(options: LoopOptions<Learner, Batch, Checkpoint, Result, Event>) {
    this.#options = options;
  }

  /** @throws VitMsnError INVALID_ARGUMENT while another call trains, and what training throws. */
  async train(options: TrainCallOptions): Promise<TrainOutput> {
    check_options("train", options, TRAIN_RULES);
    if (this.#is_training) {
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `This ${this.#options.owner} is already training; wait for train() to end.`,
      );
    }
    this.#is_training = true;
    try {
      return await this.#hold_folder(options, () => this.#train(options));
    } catch (error) {
      throw this.#with_memory_advice(error);
    } finally {
      this.#is_training = false;
    }
  }

  async log(logs: Readonly<Record<string, number>>): Promise<void> {
    const { callbacks, event } = this.#options;
    const entry: LogEntry = { ...logs, epoch: event.state.epoch, step: event.state.global_step };
    event.state.log_history.push(entry);
    await callbacks.emit("on_log", { ...event, logs: entry });
  }

  /** Writes trainer_state.json into output_dir. */
  async save_state(): Promise<void> {
    await this.#save_json(STATE_FILE, this.#options.event.state);
  }

  /** Writes metrics into output_dir as `<split>_results.json`. */
  async save_metrics(split: string, metrics: Readonly<Record<string, number>>): Promise<void> {
    await this.#save_json(`${split}_results.json`, metrics);
  }

  async #save_json(name: string, value: unknown): Promise<void> {
    const { owner, event } = this.#options;
    await save_files(output_dir_of(event.args.output_dir, owner), { [name]: json(value) });
  }

  /** The engine's own advice is for inference. */
  #with_memory_advice(error: unknown): unknown {
    if (!(error instanceof VitMsnError) || error.code !== "OUT_OF_MEMORY" || error.details.max_bytes)
      return error;
    const { activity, saves_memory } = this.#options;
    return new VitMsnError(
      "OUT_OF_MEMORY",
      `${activity} needs more memory than the engine can allocate. To save memory, use ${saves_memory}.`,
      { cause: error, details: error.details },
    );
  }

  /** Locks output_dir against other runs, if this one reads or writes checkpoints there. */
  #hold_folder<T>(
    { resume_from_checkpoint = false, signal }: TrainCallOptions,
    train: () => Promise<T>,
  ): Promise<T> {
    const { output_dir, save_strategy } = this.#options.event.args;
    const is_used = save_strategy !== "no" || resume_from_checkpoint !== false;
    return output_dir === undefined || !is_used ? train() : hold_output_folder(output_dir, signal, train);
  }

  async #train({
    resume_from_checkpoint = false,
    changed_options,
    signal,
  }: TrainCallOptions): Promise<TrainOutput> {
    const { hooks, activity } = this.#options;
    const { args, state } = this.#options.event;
    throw_if_aborted(signal, activity);
    const loader = this.#load(hooks.data(), signal);
    const plan = make_plan(args, loader.batches_per_epoch, args.gradient_accumulation_steps);
    const folder =
      args.save_strategy === "no" ? undefined : await open_output_folder(args.output_dir as SaveDirectory);
    const found = await find_checkpoint(args.output_dir, resume_from_checkpoint, hooks.read_checkpoint);
    if (found) report_changes(found, args.to_dict(), loader.length ?? null, changed_options);
    const begun = await hooks.begin(plan, found);
    try {
      this.#reset(begun.state, plan, loader);
      const [started, first_step] = [performance.now(), state.global_step];
      const run = {
        learner: begun.learner,
        loader,
        plan,
        folder,
        started,
        first_step,
        signal,
        last_result: undefined,
      };
      await this.#epochs(run);
      return await this.#finish(run);
    } finally {
      await hooks.close?.(begun.learner);
    }
  }

  #load(data: TrainingData, signal: AbortSignal | undefined): DataLoader<Batch> {
    const { args } = this.#options.event;
    return new DataLoader(data, "train_dataset", {
      batch_size: args.per_device_train_batch_size,
      collate: this.#options.hooks.collate,
      is_training: true,
      seed: args.data_seed,
      drop_last: args.dataloader_drop_last,
      is_balanced: args.train_sampling_strategy === "class_balanced",
      signal,
    });
  }

  #reset(initial: LoopState, plan: Plan, loader: DataLoader<Batch>): void {
    const { event, callbacks } = this.#options;
    Object.assign(event.state, initial, {
      train_batch_size: event.args.per_device_train_batch_size,
      num_examples: loader.length ?? null,
      max_steps: plan.max_steps,
      num_train_epochs: plan.num_train_epochs,
    });
    event.control.should_training_stop = false;
    callbacks.load_states(event.state.stateful_callbacks);
  }

  async #epochs(run: Run<Learner, Batch, Result>): Promise<void> {
    const { event, callbacks, hooks } = this.#options;
    await callbacks.emit("on_train_begin", event);
    await hooks.evaluate?.("start", run.signal);
    let is_over = this.#is_over(run);
    while (!is_over) {
      await callbacks.emit("on_epoch_begin", event);
      const is_resumed = event.state.batches_done > 0;
      const steps = await this.#epoch(run);
      is_over = this.#is_over(run);
      // An epoch that the end of the run cuts short isn't counted: a longer run resumes within it.
      if (!is_over) {
        if (steps === 0 && !is_resumed) throw no_batches();
        event.state.epochs_done++;
        event.state.batches_done = 0;
      }
      await this.#end_epoch(run);
      is_over ||= this.#is_over(run);
    }
  }

  async #end_epoch(run: Run<Learner, Batch, Result>): Promise<void> {
    const { event, callbacks, hooks } = this.#options;
    await callbacks.emit("on_epoch_end", event);
    if (event.args.logging_strategy === "epoch") await this.#log_running(run.last_result);
    await hooks.evaluate?.("epoch", run.signal);
    if (event.args.save_strategy === "epoch") await this.#save(run);
  }

  /** Steps until the epoch or the run ends; returns their number. */
  async #epoch(run: Run<Learner, Batch, Result>): Promise<number> {
    const { state } = this.#options.event;
    const first = state.global_step;
    let waited_from = performance.now();
    for await (const group of this.#groups(run)) {
      await this.#step(run, group, seconds_since(waited_from));
      if (this.#is_over(run)) break;
      waited_from = performance.now();
    }
    return state.global_step - first;
  }

  /** The remaining batches of an epoch, grouped by optimiser step. */
  async *#groups({ loader }: Run<Learner, Batch, Result>): AsyncGenerator<(Batch | undefined)[]> {
    const { args, state } = this.#options.event;
    const { gradient_accumulation_steps: size = 1 } = args;
    const total = loader.batches_per_epoch;
    let done = state.batches_done;
    let group: (Batch | undefined)[] = [];
    for await (const batch of loader.epoch(state.epochs_done, done)) {
      group.push(batch);
      done++;
      if (group.length < size && done !== total) continue;
      yield group;
      group = [];
    }
    // Where a stream ends is only known when it has ended.
    if (group.length > 0) yield group;
  }

  async #step(
    run: Run<Learner, Batch, Result>,
    group: readonly (Batch | undefined)[],
    data_seconds: number,
  ): Promise<void> {
    const { hooks, counts_empty_steps, event } = this.#options;
    const { state } = event;
    const batches = group.filter((batch) => batch !== undefined);
    if (batches.length === 0 && !counts_empty_steps) {
      state.batches_done += group.length;
      return;
    }
    const started = performance.now();
    const result = await hooks.step(run.learner, batches, run.signal);
    const step_seconds = seconds_since(started);
    state.global_step++;
    state.batches_done += group.length;
    state.epoch = this.#fraction(run);
    if (result !== undefined) {
      run.last_result = result;
      await hooks.end_step(result, { step_seconds, data_seconds, eta_seconds: this.#seconds_left(run) });
    }
    await this.#after_step(run, result);
  }

  /** Logs, evaluates and saves, if that is due or requested. */
  async #after_step(run: Run<Learner, Batch, Result>, result: Result | undefined): Promise<void> {
    const { hooks, event } = this.#options;
    const { args, state, control } = event;
    const is_due = (steps: number) => state.global_step % steps === 0;
    const is_last = state.global_step >= run.plan.max_steps;
    const is_first = args.logging_first_step && state.global_step === 1;
    const { logging_strategy = "steps" } = args;
    const logs = logging_strategy === "steps" && (is_due(args.logging_steps) || is_last);
    if (control.should_log || logs || is_first) await this.#log_running(result);
    control.should_log = false;
    await hooks.evaluate?.("step", run.signal);
    const saves = args.save_strategy === "steps" && (is_due(args.save_steps) || is_last);
    if (control.should_save || saves) await this.#save(run);
  }

  async #log_running(result: Result | undefined): Promise<void> {
    const { hooks, event } = this.#options;
    if (event.state.running.steps > 0 && result !== undefined) await this.log(hooks.take_logs(result));
  }

  async #save({ learner, folder }: Run<Learner, Batch, Result>): Promise<void> {
    const { event, callbacks, hooks } = this.#options;
    const { state, control, args } = event;
    control.should_save = false;
    if (folder === undefined) return;
    const name = checkpoint_name(state.global_step);
    callbacks.save_states(state.stateful_callbacks);
    await folder.write(name, (directory) => hooks.save(learner, directory, name));
    await remove_old_checkpoints(folder, args.save_total_limit, [name, hooks.best_checkpoint?.() ?? null]);
    await callbacks.emit("on_save", { ...event, checkpoint: name });
  }

  async #finish(run: Run<Learner, Batch, Result>): Promise<TrainOutput> {
    const { event, callbacks, hooks } = this.#options;
    const { state, args } = event;
    const seconds = seconds_since(run.started);
    const steps = state.global_step - run.first_step;
    const examples = steps * args.per_device_train_batch_size * (args.gradient_accumulation_steps ?? 1);
    const training_loss = state.total_loss / Math.max(1, state.global_step);
    const metrics = {
      ...speed_metrics("train", seconds, examples, steps),
      train_loss: training_loss,
      epoch: state.epoch,
    };
    await hooks.end?.(run.learner, run.folder);
    await this.log(metrics);
    await callbacks.emit("on_train_end", event);
    return { global_step: state.global_step, training_loss, metrics };
  }

  #is_over({ plan }: Run<Learner, Batch, Result>): boolean {
    const { state, control } = this.#options.event;
    return state.global_step >= plan.max_steps || control.should_training_stop;
  }

  #seconds_left({ started, first_step, plan }: Run<Learner, Batch, Result>): number {
    const { global_step } = this.#options.event.state;
    return (seconds_since(started) / (global_step - first_step)) * (plan.max_steps - global_step);
  }

  /** Epochs done, as a fraction. */
  #fraction({ plan, loader }: Run<Learner, Batch, Result>): number {
    const { state } = this.#options.event;
    const per_epoch = loader.batches_per_epoch;
    return per_epoch === undefined
      ? (state.global_step / plan.max_steps) * plan.num_train_epochs
      : state.epochs_done + state.batches_done / per_epoch;
  }
}

/** The data that a method needs. @throws VitMsnError INVALID_ARGUMENT if there is none. */
export function required_data(
  data: TrainingData | undefined,
  argument: string,
  method: string,
): TrainingData {
  if (data !== undefined) return data;
  throw new VitMsnError("INVALID_ARGUMENT", `${method} needs data: pass ${argument}.`, {
    details: { argument },
  });
}

function no_batches(): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", "train_dataset returned no batch in a whole epoch.", {
    details: { argument: "train_dataset" },
  });
}

function seconds_since(start: number): number {
  return (performance.now() - start) / 1000;
}
