import { list_class_folders } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { FoundFile } from "../folders/folder_types.ts";
import { permutation, Random } from "../random.ts";
import type { Dataset, Example } from "./dataset.ts";

export interface ImageFolderOptions {
  /**
   * What to do about a class whose folder holds no picture: "error" (default), or "skip" it with a warning. A class that is
   * named in `classes` but has no folder is treated likewise.
   */
  empty_classes?: "error" | "skip";
  /** The classes, in the order of their indices; default: all folders, sorted by name. */
  classes?: readonly string[];
}

/** Whether a file is a picture, by its name. */
export function is_picture({ path }: FoundFile): boolean {
  return is_image_name(path.at(-1) as string);
}

/** Pictures sorted into folders by class: root/class/…/picture, at any depth below the class. */
export class ImageFolder implements Dataset {
  /** Said outright, since minifiers rename classes. */
  static readonly name: string = "ImageFolder";
  /** Class names by index. */
  readonly classes: readonly string[];
  readonly examples: readonly Example[];

  constructor(classes: readonly string[], examples: readonly Example[]) {
    this.classes = classes;
    this.examples = examples;
  }

  /**
   * Lists a folder's pictures; they are read when they are asked for.
   * @param directory a path; in browsers a FileSystemDirectoryHandle.
   * @throws VitMsnError NOT_FOUND, IO, or INVALID_ARGUMENT where there are no classes or one has no picture.
   */
  static async open(directory: SaveDirectory, options: ImageFolderOptions = {}): Promise<ImageFolder> {
    const folders = await list_class_folders(directory);
    const where = typeof directory === "object" && "name" in directory ? directory.name : String(directory);
    const names = options.classes ?? [...folders.keys()];
    const extra = [...folders.keys()].filter((name) => !names.includes(name));
    if (names.length === 0) {
      throw invalid(
        `${where} holds no folders; there must be one for each class, with its pictures in it.`,
        where,
      );
    }
    if (extra.length > 0) {
      throw invalid(
        `${where} holds folders of other classes than ${names.join(", ")}: ${extra.join(", ")}.`,
        where,
      );
    }
    const pictures = new Map(names.map((name) => [name, (folders.get(name) ?? []).filter(is_picture)]));
    const empty = names.filter((name) => pictures.get(name)?.length === 0);
    if (empty.length > 0) report_empty(empty, where, options);
    // A class that validation lacks keeps its index; one that training lacks can't be learned.
    const classes = options.classes ?? names.filter((name) => !empty.includes(name));
    const examples = names.flatMap((name) =>
      (pictures.get(name) ?? []).map(({ file }) => ({ image: file, label: name })),
    );
    if (examples.length === 0) throw invalid(`${where} holds no picture in any of its folders.`, where);
    return new ImageFolder(classes, examples);
  }

  get length(): number {
    return this.examples.length;
  }

  get(index: number): Example {
    return this.examples[index] as Example;
  }

  /** Two folders with the same classes: this one's pictures at random, `share` of them in the second. */
  split(share: number, seed = 42): [ImageFolder, ImageFolder] {
    if (!(share > 0 && share < 1))
      throw invalid(`The share to split off must be above 0 and below 1, got ${share}.`);
    const order = permutation(this.length, new Random(seed));
    const second = Math.min(Math.max(1, Math.ceil(this.length * share)), this.length - 1);
    const pick = (indices: Uint32Array) =>
      new ImageFolder(
        this.classes,
        Array.from(indices, (i) => this.get(i)),
      );
    return [pick(order.subarray(second)), pick(order.subarray(0, second))];
  }

  /** At most `count` pictures, chosen at random. */
  take(count: number, seed = 42): ImageFolder {
    const chosen = permutation(this.length, new Random(seed)).subarray(0, count);
    return new ImageFolder(
      this.classes,
      Array.from(chosen, (i) => this.get(i)),
    );
  }
}

function report_empty(
  empty: readonly string[],
  where: string,
  { empty_classes = "error" }: ImageFolderOptions,
): void {
  const which = `${where}: there is no picture of the ${empty.length === 1 ? "class" : "classes"} ${empty.join(", ")}`;
  if (empty_classes === "skip") env.warn(`${which}; left out.`);
  else throw invalid(`${which}; add some, remove the folder, or set empty_classes to "skip".`, where);
}

function invalid(message: string, folder?: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: folder === undefined ? {} : { folder } });
}
