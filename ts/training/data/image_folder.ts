import { list_folder, walk_files } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { is_special_folder } from "../../files/file_names.ts";
import { SkippedFiles } from "../../files/skipped_files.ts";
import { IMAGE_EXTENSIONS, is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { on_demand } from "../../on_demand.ts";
import { check_options } from "../../options.ts";
import type { FoundFile } from "../folders/folder_types.ts";
import { FOLDER_RULES } from "../option_rules.ts";
import type { TableOptions } from "../tables/image_table.ts";
import type { Example } from "./dataset.ts";
import { is_metadata } from "./image_lists.ts";
import { LabelledImages } from "./labelled_images.ts";
import { name_of_folder, type Split } from "./split_names.ts";
import { enter_split, find_splits } from "./splits.ts";

/** The options from image_column_name on are for folders with metadata. */
export interface ImageFolderOptions extends TableOptions {
  /**
   * What to do with a class whose folder holds no image: throw an "error" (default), or "skip" it with a
   * warning. The same applies to a class that `classes` names but that has no folder.
   */
  empty_classes?: "error" | "skip";
  /** The classes, in the order of their indices; default: all folders, sorted by name. */
  classes?: readonly string[];
  /** Which split to read if the folder holds splits (train/cat, test/cat); default "train". */
  split?: Split;
}

/**
 * The images of a folder: sorted into folders by class, root/class/…/image, at any depth below the class; or described by
 * metadata.csv, metadata.jsonl or metadata.parquet, as in Hugging Face datasets.
 */
export class ImageFolder extends LabelledImages {
  /** Set explicitly, since minifiers rename classes. */
  static override readonly name: string = "ImageFolder";

  /**
   * Lists a folder's images, which are read on demand. Links are followed. A warning counts the files that
   * are skipped because they aren't images. Class names are in Unicode form NFC.
   *
   * If the folder holds files of metadata, they say which images there are, by the column file_name, and what their labels
   * are, by the column label; names of folders mean nothing then. Paths are relative to the metadata.
   * @param directory a path; in browsers a FileSystemDirectoryHandle.
   * @throws VitMsnError NOT_FOUND, IO, or INVALID_ARGUMENT if there are no classes, one has no image, or a row of metadata
   *   is wrong.
   */
  static async open(directory: SaveDirectory, options: ImageFolderOptions = {}): Promise<ImageFolder> {
    check_options("ImageFolder.open", options, FOLDER_RULES);
    return open_entered(await enter_split(directory, options.split ?? "train", true), options);
  }

  /** The splits that a folder holds (train/cat, test/cat); none if its folders are classes. */
  static async splits(directory: SaveDirectory): Promise<Split[]> {
    return [...(await find_splits(directory, true)).keys()];
  }
}

/** ImageFolder.open for the folder of one split. */
export async function open_entered(root: SaveDirectory, options: ImageFolderOptions): Promise<ImageFolder> {
  const where = name_of_folder(root);
  const content = await read_folder(root);
  const { metadata, skipped } = content;
  const result =
    metadata.length > 0
      ? await described(content, where, options)
      : await sorted_by_class(root, content, where, options);
  const summary = skipped.summary();
  if (summary !== undefined) env.warn(`${where}: ${summary}.`);
  return result;
}

/** What is below a folder. */
interface Content {
  images: FoundFile[];
  metadata: FoundFile[];
  others: FoundFile[];
  /** Counts what isn't used. */
  skipped: SkippedFiles;
}

async function read_folder(root: SaveDirectory): Promise<Content> {
  const content: Content = { images: [], metadata: [], others: [], skipped: new SkippedFiles() };
  for await (const found of walk_files(root, content.skipped)) {
    const name = found.path.at(-1) as string;
    const kind = is_image_name(name) ? "images" : is_metadata(name) ? "metadata" : "others";
    content[kind].push(found);
    if (kind === "others") content.skipped.add_file(found);
  }
  return content;
}

async function described(content: Content, where: string, options: ImageFolderOptions): Promise<ImageFolder> {
  const { open_metadata } = await on_demand("reader of metadata", () => import("../tables/metadata.ts"));
  const { classes, examples, problem_type } = await open_metadata(content, where, options);
  return new ImageFolder(classes, examples, problem_type);
}

async function sorted_by_class(
  root: SaveDirectory,
  content: Content,
  where: string,
  options: ImageFolderOptions,
): Promise<ImageFolder> {
  const found = await list_classes(root, content);
  const names = options.classes ?? [...found.keys()];
  check_names(names, found, where);
  const classes = names.map((name) => ({ name, ...(found.get(name.normalize("NFC")) ?? NO_IMAGES) }));
  const empty = classes.filter(({ images }) => images.length === 0);
  if (empty.length > 0) report_empty(empty, where, options);
  const examples = classes.flatMap(({ name, images }) => images.map((image) => ({ image, label: name })));
  if (examples.length === 0) throw invalid(`${where} holds no image in any of its folders.`, where);
  // A class without validation images still has its index; a class without training images can't be learned.
  return new ImageFolder(
    options.classes ?? names.filter((name) => !empty.some((one) => one.name === name)),
    examples,
  );
}

/** A class's images, and the other files of its folder. */
interface FoundClass {
  images: Example["image"][];
  skipped: SkippedFiles;
}

const NO_IMAGES: FoundClass = { images: [], skipped: new SkippedFiles() };

/** The classes of a folder by their names in NFC, in order. */
async function list_classes(
  root: SaveDirectory,
  { images, others, skipped }: Content,
): Promise<Map<string, FoundClass>> {
  const { folders } = await list_folder(root);
  const labels = folders.filter((name) => !is_special_folder(name)).map((name) => name.normalize("NFC"));
  const classes = new Map(
    labels.map((label) => [label, { images: [], skipped: new SkippedFiles() } as FoundClass]),
  );
  const class_of = ({ path }: FoundFile) =>
    path.length > 1 ? classes.get((path[0] as string).normalize("NFC")) : undefined;
  for (const found of others) class_of(found)?.skipped.add_file(found);
  for (const found of images) {
    const label = class_of(found);
    if (label !== undefined) label.images.push(found.file);
    else skipped.count("images outside the folders of classes");
  }
  return classes;
}

/** Checks that there are class folders, and only of the wanted classes. */
function check_names(wanted: readonly string[], found: ReadonlyMap<string, FoundClass>, where: string): void {
  if (found.size === 0 && wanted.length === 0)
    throw invalid(
      `${where} has no subfolders; it needs one for each class, holding that class's images.`,
      where,
    );
  const known = wanted.map((name) => name.normalize("NFC"));
  const extra = [...found.keys()].filter((name) => !known.includes(name));
  if (extra.length > 0)
    throw invalid(
      `${where} has folders of other classes (${extra.join(", ")}) than the expected ${wanted.join(", ")}.`,
      where,
    );
}

function report_empty(
  empty: readonly (FoundClass & { name: string })[],
  where: string,
  { empty_classes = "error" }: ImageFolderOptions,
): void {
  const names = empty.map(({ name, skipped }) => {
    const summary = skipped.summary();
    return summary === undefined ? name : `${name} (${summary})`;
  });
  const which = `${where}: there is no image of the ${empty.length === 1 ? "class" : "classes"} ${names.join(", ")}`;
  if (empty_classes === "skip") {
    env.warn(`${which}; skipped.`);
    return;
  }
  throw invalid(
    `${which}; add files whose names end in .${IMAGE_EXTENSIONS.join(", .")}, remove the folder, or set empty_classes to "skip".`,
    where,
  );
}

function invalid(message: string, folder?: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: folder === undefined ? {} : { folder } });
}
