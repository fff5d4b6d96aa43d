import { join } from "node:path";
import { readdir, stat } from "../../files/index.ts";
import { env, VitMsnError } from "../../index.ts";
import type { TrainCallOptions } from "../../training/index.ts";
import { notify } from "../terminal.ts";
import { LOG_FILES } from "./log_file.ts";

/** Exit codes by the name of the signal. */
const INTERRUPTED = { SIGINT: 130, SIGTERM: 143 } as const;

export interface ResumeFlags {
  resume_from_checkpoint?: string;
  overwrite_output_dir?: boolean;
}

/**
 * Where train() resumes: from the given checkpoint, or else from the newest one in output_dir. In that case the options must be
 * those of the run that wrote it.
 * @throws VitMsnError NOT_FOUND if the given checkpoint isn't there; INVALID_ARGUMENT if output_dir contains something else,
 *   which must not be overwritten.
 */
export async function checkpoint_to_resume(
  output_dir: string,
  flags: ResumeFlags,
): Promise<TrainCallOptions> {
  const { resume_from_checkpoint } = flags;
  if (resume_from_checkpoint !== undefined) {
    await check_checkpoint(output_dir, resume_from_checkpoint);
    return { resume_from_checkpoint };
  }
  if (flags.overwrite_output_dir) return {};
  const names = (await readdir(output_dir)).filter(
    (name) => !name.startsWith(".") && !LOG_FILES.includes(name),
  );
  if (names.some((name) => /^checkpoint-\d+$/.test(name))) {
    env.warn(
      `${output_dir} contains a checkpoint: training resumes from it. To start again, add --overwrite-output-dir.`,
    );
    return { resume_from_checkpoint: true, changed_options: "error" };
  }
  if (names.length > 0) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${output_dir} isn't empty and contains no checkpoint; choose another output_dir, or add --overwrite-output-dir.`,
      { details: { argument: "output_dir" } },
    );
  }
  return {};
}

/** A wrong path must not be taken for a repository of the hub. */
async function check_checkpoint(output_dir: string, checkpoint: string): Promise<void> {
  for (const path of [checkpoint, join(output_dir, checkpoint)])
    if ((await stat(path).catch(() => undefined))?.isDirectory()) return;
  throw new VitMsnError(
    "NOT_FOUND",
    `There is no checkpoint ${checkpoint}; pass its folder, or its name in ${output_dir}.`,
    { details: { argument: "resume_from_checkpoint" } },
  );
}

/** The part of both kinds of training events that an interrupt needs. */
interface StoppableEvent {
  control: { should_save: boolean; should_training_stop: boolean };
}

/** Makes an interrupt stop training after the current step and save a checkpoint. A second one ends the process. */
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
  const announce = () => notify("stopping after this step; interrupt again to stop immediately.", "\n");
  signal.addEventListener("abort", announce);
  return {
    callback,
    has_stopped: () => stopped,
    forget: () => signal.removeEventListener("abort", announce),
  };
}

/** Reports where an interrupted run stopped. @returns its exit code. */
export function interrupted(
  { state, args }: { state: { global_step: number }; args: { save_strategy: string } },
  signal: AbortSignal,
): number {
  const { global_step } = state;
  const how =
    args.save_strategy === "no"
      ? "nothing was saved, since save_strategy is no."
      : "run the same command again to resume.";
  notify(`stopped after step ${global_step}; ${how}`);
  return INTERRUPTED[signal.reason as keyof typeof INTERRUPTED] ?? INTERRUPTED.SIGINT;
}

/** @throws VitMsnError INVALID_ARGUMENT if a required option is missing. */
export function required(value: string | undefined, name: string, command: string): string {
  if (value !== undefined) return value;
  throw new VitMsnError("INVALID_ARGUMENT", `vit-msn ${command} requires --${name.replaceAll("_", "-")}.`, {
    details: { argument: name },
  });
}

/** Prints metrics on standard output. */
export function print_metrics(metrics: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(metrics)) process.stdout.write(`${name} = ${value}\n`);
}
