import { find_file, is_folder, open_data_file, parent_folder } from "#folders";
import { env } from "../../env.ts";
import { invalid_argument } from "../../errors.ts";
import { unsupported_scheme } from "../../files/url_scheme.ts";
import type { ImageInput } from "../../image/raw_image.ts";
import { is_a } from "../../is_a.ts";
import type { FileSource } from "../../loading/open_file.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { show_url } from "../../network/show_url.ts";
import { on_demand } from "../../on_demand.ts";
import { check_options } from "../../options.ts";
import { LABELLED_RULES } from "../option_rules.ts";
import type { TableSource } from "../tables/image_table.ts";
import { ImageFolder, type ImageFolderOptions, open_entered } from "./image_folder.ts";
import {
  LIST_EXTENSIONS,
  type ListKind,
  list_kind,
  lists_in,
  lists_of_split,
  splits_of_lists,
} from "./image_lists.ts";
import type { LabelledImages } from "./labelled_images.ts";
import { name_of_folder, type Split } from "./split_names.ts";
import { enter_split } from "./splits.ts";

export interface LabelledImagesOptions extends ImageFolderOptions {
  /** The folder that paths in lists are relative to; default: each list's own folder, or its URL. */
  image_dir?: SaveDirectory;
}

/**
 * A folder, or one or several lists or shards, by path or URL or as Files: .csv, .tsv, .jsonl, .ndjson, .parquet, .tar.
 */
export type LabelledImagesSource = SaveDirectory | FileSource | readonly FileSource[];

/**
 * Opens labelled images from a folder, from lists or from WebDataset shards. Images are read on demand.
 *
 * - A folder: see ImageFolder. If it holds lists or shards instead of images, their names say which split they belong to
 *   (train-00000-of-00002.parquet).
 * - A list (CSV, JSON lines, Parquet) has a row for each image, with its path, URL or bytes, and its label. All Parquet files
 *   of Hugging Face datasets with an Image are of this form.
 * - A shard is a tar archive with the members key.jpg and key.cls or key.json of each image.
 * @throws VitMsnError INVALID_ARGUMENT that names file, row and column; NOT_FOUND; IO; UNSUPPORTED.
 */
export async function open_labelled_images(
  source: LabelledImagesSource,
  options: LabelledImagesOptions = {},
): Promise<LabelledImages> {
  check_options("open_labelled_images", options, LABELLED_RULES);
  if (Array.isArray(source)) return open_lists(source, options);
  if (!(await is_folder(source)) && !(await is_missing(source as FileSource)))
    return open_lists([source as FileSource], options);
  const directory = source as SaveDirectory;
  const { split = "train" } = options;
  const root = await enter_split(directory, split, true);
  const lists = await lists_in(root);
  if (lists.length === 0) return open_entered(root, options);
  const chosen = lists_of_split(lists, split, root);
  const files = await Promise.all(chosen.map((path) => find_file(root, path)));
  return open_lists(files as FileSource[], { image_dir: root, ...options });
}

/** The splits that a folder holds, as folders or in the names of lists; none if it isn't divided, or isn't a folder. */
export async function image_splits(source: LabelledImagesSource): Promise<Split[]> {
  if (!(await is_folder(source))) return [];
  const directory = source as SaveDirectory;
  const folders = await ImageFolder.splits(directory);
  return folders.length > 0 ? folders : splits_of_lists(await lists_in(directory));
}

/** A path that leads nowhere and isn't a list's: the error is then that of a missing folder. */
async function is_missing(source: FileSource): Promise<boolean> {
  const folder = parent_folder(source);
  if (folder === undefined || list_kind(String(source)) !== undefined) return false;
  return (await find_file(folder, String(source).replace(/^.*[/\\]/, ""))) === undefined;
}

async function open_lists(
  files: readonly FileSource[],
  options: LabelledImagesOptions,
): Promise<LabelledImages> {
  if (files.length === 0) throw invalid_argument("open_labelled_images needs at least one list.", "source");
  const kinds = files.map((file) => kind_of(file));
  const is_tar = kinds.includes("tar");
  if (is_tar && kinds.some((kind) => kind !== "tar"))
    throw invalid_argument(
      "Shards (.tar) and lists can't be mixed; open them one after the other.",
      "source",
    );
  const splits = splits_of_lists(files.map(name_of_file));
  if (splits.length > 1)
    env.warn(`The lists belong to the splits ${splits.join(", ")}; all are used together.`);
  const open = (file: FileSource) => () => open_data_file(file, options.signal);
  const { images_of_shards, images_of_tables, open_table } = await on_demand(
    "reader of lists",
    () => import("../tables/index.ts"),
  );
  if (is_tar) {
    const shards = files.map((file) => ({ name: name_of_file(file), open: open(file) }));
    return images_of_shards(shards, options);
  }
  const sources = files.map(async (file, i): Promise<TableSource> => {
    const name = name_of_file(file);
    const kind = kinds[i] as Exclude<ListKind, "tar">;
    const table = await open_table(name, kind, open(file));
    return { table, image_columns: ["image", "file_name"], ...finder(file, options.image_dir) };
  });
  return images_of_tables(await Promise.all(sources), options);
}

/** @throws VitMsnError INVALID_ARGUMENT for a file whose name doesn't say what it is. */
function kind_of(file: FileSource): ListKind {
  const name = name_of_file(file);
  const kind = list_kind(name.split(/[?#]/, 1)[0] as string);
  if (kind !== undefined) return kind;
  throw invalid_argument(
    `${name} isn't a list of images: expected a file whose name ends in .${LIST_EXTENSIONS.join(", .")}. ` +
      "Pass bytes and Blobs as a File with such a name.",
    "source",
  );
}

function name_of_file(file: FileSource): string {
  if (typeof file === "string" || is_a(file, "URL")) return show_url(String(file));
  return (file as Partial<File>).name || "The list";
}

/** Finds the images that a list names. */
function finder(list: FileSource, image_dir: SaveDirectory | undefined): Pick<TableSource, "find" | "where"> {
  const folder = image_dir ?? parent_folder(list);
  const is_address = typeof list === "string" || is_a(list, "URL");
  const base = folder === undefined && is_address ? String(list) : undefined;
  const find = async (text: string): Promise<ImageInput | undefined> => {
    const path = text.trim();
    if (/^(?:https?|data|blob|file):/i.test(path)) return path;
    const unsupported = unsupported_scheme(path);
    if (unsupported !== undefined) throw unsupported;
    if (folder !== undefined) return (await find_file(folder, text)) ?? find_file(folder, path);
    return base === undefined ? undefined : new URL(path, base).href;
  };
  const where = folder !== undefined ? name_of_folder(folder) : (base ?? "image_dir, which isn't set");
  return { find, where };
}
