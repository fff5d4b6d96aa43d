import { child_folder, list_folder } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { is_special_folder } from "../../files/file_names.ts";
import { is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { name_of_folder, type Split, split_of } from "./split_names.ts";

/** The kinds of lists of images, by the extensions of their files' names. */
const EXTENSIONS = {
  csv: ["csv", "tsv"],
  jsonl: ["jsonl", "ndjson"],
  parquet: ["parquet"],
  tar: ["tar", "tgz"],
} as const;
export type ListKind = keyof typeof EXTENSIONS;

/** The kind of list that a file's name stands for. */
export function list_kind(name: string): ListKind | undefined {
  // Compressed shards are recognised, and refused with advice.
  const extension = /\.([a-z]+)(?:\.gz)?$/i.exec(name)?.[1]?.toLowerCase() ?? "";
  return (Object.keys(EXTENSIONS) as ListKind[]).find((kind) =>
    (EXTENSIONS[kind] as readonly string[]).includes(extension),
  );
}

export const LIST_EXTENSIONS: readonly string[] = Object.values(EXTENSIONS).flat();

/** Whether a file describes the images of its folder, as in Hugging Face datasets. */
export function is_metadata(name: string): boolean {
  return /^metadata\.(?:csv|jsonl|parquet)$/.test(name);
}

/** The folder where datasets' own folders hold their shards. */
const DATA = "data";

/**
 * The lists and shards that a folder holds instead of images: directly, or in its folder "data"; as paths below it. None if there
 * are images or other folders.
 */
export async function lists_in(directory: SaveDirectory): Promise<string[]> {
  const { files, folders } = await list_folder(directory);
  const own = folders.filter((name) => !is_special_folder(name));
  if (files.some((name) => is_image_name(name) || is_metadata(name))) return [];
  const lists = files.filter((name) => list_kind(name) !== undefined);
  if (own.length === 0) return lists;
  if (own.length > 1 || own[0] !== DATA || lists.length > 0) return [];
  const below = await list_folder(await child_folder(directory, DATA));
  const is_data = below.folders.length === 0 && !below.files.some(is_image_name);
  return is_data ? below.files.filter((name) => list_kind(name)).map((name) => `${DATA}/${name}`) : [];
}

/** The lists of one split, by the words in their names; all of them if no name has one. */
export function lists_of_split(lists: readonly string[], split: Split, directory: SaveDirectory): string[] {
  const splits = splits_of_lists(lists);
  if (splits.length === 0) return [...lists];
  const where = name_of_folder(directory);
  const chosen = lists.filter((path) => split_of(base_name(path)) === split);
  if (chosen.length === 0)
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${where} holds lists of the splits ${splits.join(", ")}, but none of ${split}; pass the files of one split.`,
      { details: { folder: where } },
    );
  const without = lists.filter((path) => split_of(base_name(path)) === undefined);
  if (without.length > 0)
    env.warn(
      `${where}: skipped ${without.length} lists whose names belong to no split: ${without.slice(0, 10).join(", ")}.`,
    );
  return chosen;
}

export function splits_of_lists(lists: readonly string[]): Split[] {
  return [...new Set(lists.map((path) => split_of(base_name(path))))].filter((split) => split !== undefined);
}

function base_name(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
