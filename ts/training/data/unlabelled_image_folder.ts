import { walk_files } from "#folders";
import { env } from "../../env.ts";
import { VitMsnError } from "../../errors.ts";
import { SkippedFiles } from "../../files/skipped_files.ts";
import { IMAGE_EXTENSIONS, is_image_name } from "../../image/formats.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { check_options } from "../../options.ts";
import { SPLIT_RULES } from "../option_rules.ts";
import { permutation, Random } from "../random.ts";
import type { Dataset, Example } from "./dataset.ts";
import { name_of_folder, type Split } from "./split_names.ts";
import { enter_split } from "./splits.ts";

export interface UnlabelledImageFolderOptions {
  /** Which split to read if the folder holds splits (train, test); default "train". */
  split?: Split;
}

/** All images below a folder, at any depth, without labels. */
export class UnlabelledImageFolder implements Dataset {
  readonly examples: readonly Example[];

  constructor(examples: readonly Example[]) {
    this.examples = examples;
  }

  /**
   * Lists a folder's images, which are read on demand. Links are followed. A warning counts the files that
   * are skipped because they aren't images.
   * @param directory a path; in browsers a FileSystemDirectoryHandle.
   * @throws VitMsnError NOT_FOUND, IO, or INVALID_ARGUMENT if there is no image.
   */
  static async open(
    directory: SaveDirectory,
    options: UnlabelledImageFolderOptions = {},
  ): Promise<UnlabelledImageFolder> {
    check_options("UnlabelledImageFolder.open", options, SPLIT_RULES);
    const root = await enter_split(directory, options.split ?? "train", false);
    const where = name_of_folder(root);
    const skipped = new SkippedFiles();
    const examples: Example[] = [];
    for await (const found of walk_files(root, skipped)) {
      if (is_image_name(found.path.at(-1) as string)) examples.push({ image: found.file });
      else skipped.add_file(found);
    }
    const summary = skipped.summary();
    if (summary !== undefined) env.warn(`${where}: ${summary}.`);
    if (examples.length > 0) return new UnlabelledImageFolder(examples);
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${where} holds no image: no file whose name ends in .${IMAGE_EXTENSIONS.join(", .")}.`,
      { details: { folder: where } },
    );
  }

  get length(): number {
    return this.examples.length;
  }

  get(index: number): Example {
    return this.examples[index] as Example;
  }

  /** Up to `count` images, chosen at random. */
  take(count: number, seed = 42): UnlabelledImageFolder {
    const chosen = permutation(this.length, new Random(seed)).subarray(0, count);
    return new UnlabelledImageFolder(Array.from(chosen, (i) => this.get(i)));
  }
}
