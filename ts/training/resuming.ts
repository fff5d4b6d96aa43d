import { open_output_folder } from "#folders";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { PretrainedSource } from "../loading/types.ts";
import { newest_readable, sort_checkpoints } from "./checkpoint.ts";

/**
 * The checkpoint to resume from.
 * @param resume true: the newest readable one in output_dir, if there is any; false: none; or a
 *   checkpoint's folder, or its name in output_dir.
 */
export async function find_checkpoint<Loaded>(
  output_dir: SaveDirectory | undefined,
  resume: boolean | PretrainedSource,
  read: (source: PretrainedSource) => Promise<Loaded>,
): Promise<Loaded | undefined> {
  if (resume === false) return undefined;
  const folder = output_dir === undefined ? undefined : await open_output_folder(output_dir);
  const names = sort_checkpoints((await folder?.list()) ?? []);
  if (resume !== true) {
    const is_name = typeof resume === "string" && names.includes(resume);
    return read(folder && is_name ? await folder.source(resume) : resume);
  }
  if (folder === undefined) {
    throw new VitMsnError("INVALID_ARGUMENT", "resume_from_checkpoint: true needs an output_dir.");
  }
  return newest_readable(folder, names, read);
}

/** How a call of train() resumes. */
export interface ResumeOptions {
  /**
   * true: the newest readable checkpoint in output_dir, if there is any; or a checkpoint's folder, or its
   * name in output_dir.
   */
  resume_from_checkpoint?: boolean | PretrainedSource;
  /** If the checkpoint was written with other options: "warn" (default) and resume, or throw an "error". */
  changed_options?: "warn" | "error";
}

/** What a checkpoint records of the run that wrote it. */
export interface RunOrigin {
  name: string;
  /** Its options; undefined if they weren't written. */
  args: Readonly<Record<string, unknown>> | undefined;
  state: { num_examples: number | null };
}

/** Options that change how long a run is and what it logs, evaluates and saves, but not its steps. */
const HARMLESS = new Set([
  "output_dir",
  "num_train_epochs",
  "max_steps",
  "per_device_eval_batch_size",
  "gradient_checkpointing",
  "usage_window",
]);
const HARMLESS_PREFIXES = /^(?:eval|save|logging|load_best|metric_for|greater_is)_/;

/**
 * Reports the options and data that differ from those of the checkpoint's run.
 * @throws VitMsnError INVALID_ARGUMENT if `reaction` is "error".
 */
export function report_changes(
  { name, args: then, state }: RunOrigin,
  now: Readonly<Record<string, unknown>>,
  num_examples: number | null,
  reaction: "warn" | "error" = "warn",
): void {
  const known = then === undefined ? [] : [...new Set([...Object.keys(then), ...Object.keys(now)])];
  const changes = known
    .filter((key) => !HARMLESS.has(key) && !HARMLESS_PREFIXES.test(key))
    .filter((key) => show(then?.[key]) !== show(now[key]))
    .map((key) => `${key} was ${show(then?.[key])} and is ${show(now[key])}`);
  if (state.num_examples !== num_examples)
    changes.push(`train_dataset had ${state.num_examples} examples and has ${num_examples}`);
  if (changes.length === 0) return;
  const difference = `${name} was written by a run with other options or data: ${changes.join("; ")}.`;
  if (reaction === "warn") {
    env.warn(`${difference} Training resumes from it, but its results will differ from that run's.`);
    return;
  }
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${difference} Pass the same options or another output_dir; to resume anyway, name the checkpoint in resume_from_checkpoint.`,
    { details: { changes } },
  );
}

function show(value: unknown): string {
  return JSON.stringify(value) ?? "unset";
}

/** @throws VitMsnError INVALID_ARGUMENT if there is no folder to save into. */
export function output_dir_of(directory: SaveDirectory | undefined, owner: string): SaveDirectory {
  if (directory !== undefined) return directory;
  throw new VitMsnError("INVALID_ARGUMENT", `Saving needs an output_dir in the ${owner}'s args.`, {
    details: { argument: "output_dir" },
  });
}
