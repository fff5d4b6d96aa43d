import { child_folder, list_folder } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { is_special_folder } from "../../files/file_names.ts";
import { is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { is_metadata, lists_in } from "./image_lists.ts";
import { name_of_folder, type Split, split_of } from "./split_names.ts";

/** The folder of each split. */
export type SplitFolders = ReadonlyMap<Split, string>;

/**
 * The splits that a folder holds: subfolders named after splits instead of classes. For labelled images each
 * must hold class folders, since "train" may also be a class.
 *
 * @returns undefined if the subfolders aren't splits.
 * @throws VitMsnError INVALID_ARGUMENT if only some are.
 */
export async function find_splits(directory: SaveDirectory, has_classes: boolean): Promise<SplitFolders> {
  const folders = (await list_folder(directory)).folders.filter((name) => !is_special_folder(name));
  const splits = new Map<Split, string>();
  const others: string[] = [];
  for (const name of folders) {
    const split = split_of(name);
    if (split === undefined || splits.has(split)) others.push(name);
    else splits.set(split, name);
  }
  const is_certain = splits.size > 1;
  if (!is_certain && (splits.size === 0 || others.length > 0 || !has_classes)) return new Map();
  for (const name of has_classes ? splits.values() : []) {
    if (await holds_labels(directory, name)) continue;
    if (!is_certain || others.some((other) => split_of(other) === undefined)) return new Map();
    throw invalid(
      `${name_of_folder(directory)} holds the splits ${[...splits.values()].join(", ")}, but ${name} has no folders of ` +
        "classes; put its images into a folder for each class.",
      directory,
    );
  }
  if (others.length === 0) return splits;
  if (!has_classes) return new Map();
  throw invalid(
    `${name_of_folder(directory)} holds the splits ${[...splits.values()].join(", ")} and other folders (${others.join(", ")}); ` +
      "pass the folder of one split.",
    directory,
  );
}

/** Whether a folder holds labelled images: class folders, metadata of its images, or lists of images. */
async function holds_labels(directory: SaveDirectory, name: string): Promise<boolean> {
  const folder = await child_folder(directory, name);
  const { folders, files } = await list_folder(folder);
  if (files.some(is_metadata)) return true;
  return (folders.length > 0 && !files.some(is_image_name)) || (await lists_in(folder)).length > 0;
}

/** One folder by the name of a split may be a class, but is unlikely to be one if it holds folders alone. */
async function warn_of_classes_like_splits(directory: SaveDirectory): Promise<void> {
  for (const name of (await list_folder(directory)).folders) {
    if (split_of(name) === undefined || !(await holds_labels(directory, name))) continue;
    env.warn(
      `${name_of_folder(directory)}: ${name} is read as a class, because the folder also contains folders that aren't splits; ` +
        `if it is a split, pass ${name} itself.`,
    );
  }
}

/** The folder of one split, which a warning names; the whole folder if it holds no splits. */
export async function enter_split(
  directory: SaveDirectory,
  split: Split,
  has_classes: boolean,
): Promise<SaveDirectory> {
  const splits = await find_splits(directory, has_classes);
  if (splits.size === 0) {
    if (has_classes) await warn_of_classes_like_splits(directory);
    return directory;
  }
  const where = name_of_folder(directory);
  const all = [...splits.values()].join(", ");
  const name = splits.get(split);
  if (name === undefined)
    throw invalid(
      `${where} holds the splits ${all}, but none named ${split}; pass the folder of one split.`,
      directory,
    );
  env.warn(`${where} holds the splits ${all}; using ${name}.`);
  return child_folder(directory, name);
}

function invalid(message: string, directory: SaveDirectory): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: { folder: name_of_folder(directory) } });
}
