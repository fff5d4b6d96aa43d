import { readdir } from "../../files/index.ts";
import { env, VitMsnError } from "../../index.ts";
import type { TrainCallOptions } from "../../training/index.ts";

import { say } from "../terminal.ts";

/** Exit codes by the signal's name, as main.ts gives it. */
const INTERRUPTED = { SIGINT: 130, SIGTERM: 143 } as const;

export interface ResumeFlags {
  resume_from_checkpoint?: string;
  overwrite_output_dir?: boolean;
}

/**
 * How train() begins: where it is to go on, which is what was asked for, or else the newest checkpoint in output_dir. Then the options must
 * be those of the run that wrote it.
 * @throws VitMsnError INVALID_ARGUMENT where output_dir holds something else, which isn't to be overwritten.
 */
export async function checkpoint_to_resume(
  output_dir: string,
  flags: ResumeFlags,
): Promise<TrainCallOptions> {
  const { resume_from_checkpoint } = flags;
  if (resume_from_checkpoint !== undefined) return { resume_from_checkpoint };
  if (flags.overwrite_output_dir) return {};
  const names = (await readdir(output_dir)).filter((name) => !name.startsWith("."));
  if (names.some((name) => /^checkpoint-\d+$/.test(name))) {
    env.warn(
      `${output_dir} holds a checkpoint: training goes on from it. To begin anew, add --overwrite-output-dir.`,
    );
    return { resume_from_checkpoint: true, changed_options: "error" };
  }
  if (names.length > 0) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${output_dir} isn't empty and holds no checkpoint; choose another output_dir, or add --overwrite-output-dir.`,
      { details: { argument: "output_dir" } },
    );
  }
  return {};
}

/** What a callback of either kind of training is told, as far as an interrupt goes. */
interface StoppableEvent {
  control: { should_save: boolean; should_training_stop: boolean };
}

/** An interrupt ends training after the step that is under way, with a checkpoint. A second one ends the process. */
export function stop_on_signal(signal: AbortSignal) {
  let stopped = false;
  const callback = {
    on_step_end: ({ control }: StoppableEvent) => {
      if (!signal.aborted) return;
      stopped = true;
      control.should_save = true;
      control.should_training_stop = true;
    },
  };
  const tell = () => say("stopping after this step; interrupt again to stop at once.", "\n");
  signal.addEventListener("abort", tell);
  return { callback, has_stopped: () => stopped, forget: () => signal.removeEventListener("abort", tell) };
}

/** Says where an interrupted run stopped, and gives its exit code. */
export function interrupted(
  { state, args }: { state: { global_step: number }; args: { save_strategy: string } },
  signal: AbortSignal,
): number {
  const { global_step } = state;
  const how =
    args.save_strategy === "no"
      ? "nothing was saved, as save_strategy is no."
      : "the same command goes on from there.";
  say(`stopped after step ${global_step}; ${how}`);
  return INTERRUPTED[signal.reason as keyof typeof INTERRUPTED] ?? INTERRUPTED.SIGINT;
}

/** @throws VitMsnError INVALID_ARGUMENT where an option that a command needs is missing. */
export function required(value: string | undefined, name: string, command: string): string {
  if (value !== undefined) return value;
  throw new VitMsnError("INVALID_ARGUMENT", `vit-msn ${command} needs --${name.replaceAll("_", "-")}.`, {
    details: { argument: name },
  });
}
