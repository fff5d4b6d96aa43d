import { list_folder, walk_files } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { is_special_folder } from "../../files/file_names.ts";
import { SkippedFiles } from "../../files/skipped_files.ts";
import { IMAGE_EXTENSIONS, is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { check_options, flag } from "../../options.ts";
import { FOLDER_RULES } from "../option_rules.ts";
import { permutation, Random } from "../random.ts";
import type { Dataset, Example } from "./dataset.ts";
import { split_stratified } from "./sampling.ts";
import { enter_split, find_splits, name_of_folder, type Split } from "./splits.ts";

export interface ImageFolderOptions {
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

/** Images sorted into folders by class: root/class/…/image, at any depth below the class. */
export class ImageFolder implements Dataset {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "ImageFolder";
  /** Class names by index. */
  readonly classes: readonly string[];
  readonly examples: readonly Example[];

  constructor(classes: readonly string[], examples: readonly Example[]) {
    this.classes = classes;
    this.examples = examples;
  }

  /**
   * Lists a folder's images, which are read on demand. Links are followed. A warning counts the files that
   * are skipped because they aren't images. Class names are in Unicode form NFC.
   * @param directory a path; in browsers a FileSystemDirectoryHandle.
   * @throws VitMsnError NOT_FOUND, IO, or INVALID_ARGUMENT if there are no classes or one has no image.
   */
  static async open(directory: SaveDirectory, options: ImageFolderOptions = {}): Promise<ImageFolder> {
    check_options("ImageFolder.open", options, FOLDER_RULES);
    const root = await enter_split(directory, options.split ?? "train", true);
    const where = name_of_folder(root);
    const skipped = new SkippedFiles();
    const found = await list_classes(root, skipped);
    const names = options.classes ?? [...found.keys()];
    check_names(names, found, where);
    const classes = names.map((name) => ({ name, ...(found.get(name.normalize("NFC")) ?? NO_IMAGES) }));
    const summary = skipped.summary();
    if (summary !== undefined) env.warn(`${where}: ${summary}.`);
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

  /** The splits that a folder holds (train/cat, test/cat); none if its folders are classes. */
  static async splits(directory: SaveDirectory): Promise<Split[]> {
    return [...(await find_splits(directory, true)).keys()];
  }

  get length(): number {
    return this.examples.length;
  }

  get(index: number): Example {
    return this.examples[index] as Example;
  }

  /**
   * Splits the images at random into two folders with the same classes; `share` of them are in the second, of each class
   * alike if the split is `stratified`, as scikit-learn's train_test_split does.
   */
  split(share: number, seed = 42, options: { stratified?: boolean } = {}): [ImageFolder, ImageFolder] {
    check_options("split", options, { stratified: flag });
    if (!(share > 0 && share < 1))
      throw invalid(`The share to split off must be above 0 and below 1, got ${share}.`);
    const order = permutation(this.length, new Random(seed));
    const second = Math.min(Math.max(1, Math.ceil(this.length * share)), this.length - 1);
    const [first_indices, second_indices] = options.stratified
      ? split_stratified(order, (i) => this.get(i).label, second)
      : [order.subarray(second), order.subarray(0, second)];
    const pick = (indices: Uint32Array) =>
      new ImageFolder(
        this.classes,
        Array.from(indices, (i) => this.get(i)),
      );
    return [pick(first_indices), pick(second_indices)];
  }

  /** Up to `count` images, chosen at random. */
  take(count: number, seed = 42): ImageFolder {
    const chosen = permutation(this.length, new Random(seed)).subarray(0, count);
    return new ImageFolder(
      this.classes,
      Array.from(chosen, (i) => this.get(i)),
    );
  }
}

/** A class's images, and the other files of its folder. */
interface FoundClass {
  images: Example["image"][];
  skipped: SkippedFiles;
}

const NO_IMAGES: FoundClass = { images: [], skipped: new SkippedFiles() };

/** The classes of a folder by their names in NFC, in order. */
async function list_classes(root: SaveDirectory, skipped: SkippedFiles): Promise<Map<string, FoundClass>> {
  const { folders } = await list_folder(root);
  const labels = folders.filter((name) => !is_special_folder(name)).map((name) => name.normalize("NFC"));
  const classes = new Map(
    labels.map((label) => [label, { images: [], skipped: new SkippedFiles() } as FoundClass]),
  );
  for await (const found_file of walk_files(root, skipped)) {
    const { path, file } = found_file;
    const name = path.at(-1) as string;
    const found = path.length > 1 ? classes.get((path[0] as string).normalize("NFC")) : undefined;
    if (!is_image_name(name)) for (const tally of [skipped, found?.skipped]) tally?.add_file(found_file);
    else if (found !== undefined) found.images.push(file);
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
