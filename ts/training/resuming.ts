import { open_output_folder } from "#folders";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import type { SaveDirectory } from "../loading/storage_types.ts";
import type { PretrainedSource } from "../loading/types.ts";
import { newest_sound, sort_checkpoints } from "./checkpoint.ts";

/**
 * The checkpoint to go on from.
 * @param resume true: the newest sound one of output_dir, if there is any; false: none; or a checkpoint's folder, or its name in output_dir.
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
  return newest_sound(folder, names, read);
}

/** What of a run decides in which order it sees the data. */
interface DataOrder {
  train_batch_size: number;
  num_examples: number | null;
}

/** Says what makes a resumed run another one than that which was broken off. */
export function warn_of_changes(saved: DataOrder, now: DataOrder): void {
  const changes = [
    saved.train_batch_size !== now.train_batch_size &&
      `per_device_train_batch_size was ${saved.train_batch_size}`,
    saved.num_examples !== now.num_examples && `train_dataset had ${saved.num_examples} examples`,
  ].filter(Boolean);
  if (changes.length > 0) {
    env.warn(
      `The checkpoint is of another run (${changes.join(", ")}); its order of the data isn't gone on with exactly.`,
    );
  }
}

/** @throws VitMsnError INVALID_ARGUMENT where there is no folder to save into. */
export function output_dir_of(directory: SaveDirectory | undefined, owner: string): SaveDirectory {
  if (directory !== undefined) return directory;
  throw new VitMsnError("INVALID_ARGUMENT", `Saving needs an output_dir in the ${owner}'s args.`, {
    details: { argument: "output_dir" },
  });
}
