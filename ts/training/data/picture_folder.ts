import { list_files } from "#folders";
import { VitMsnError } from "../../errors.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import { permutation, Random } from "../random.ts";
import type { Dataset, Example } from "./dataset.ts";
import { is_picture } from "./image_folder.ts";

/** All pictures below a folder, at any depth, without labels. */
export class PictureFolder implements Dataset {
  readonly examples: readonly Example[];

  constructor(examples: readonly Example[]) {
    this.examples = examples;
  }

  /**
   * Lists a folder's pictures; they are read when they are asked for.
   * @param directory a path; in browsers a FileSystemDirectoryHandle.
   * @throws VitMsnError NOT_FOUND, IO, or INVALID_ARGUMENT where there is no picture.
   */
  static async open(directory: SaveDirectory): Promise<PictureFolder> {
    const files = (await list_files(directory)).filter(is_picture);
    if (files.length > 0) return new PictureFolder(files.map(({ file }) => ({ image: file })));
    const where = typeof directory === "object" && "name" in directory ? directory.name : String(directory);
    throw new VitMsnError("INVALID_ARGUMENT", `${where} holds no picture.`, { details: { folder: where } });
  }

  get length(): number {
    return this.examples.length;
  }

  get(index: number): Example {
    return this.examples[index] as Example;
  }

  /** At most `count` pictures, chosen at random. */
  take(count: number, seed = 42): PictureFolder {
    const chosen = permutation(this.length, new Random(seed)).subarray(0, count);
    return new PictureFolder(Array.from(chosen, (i) => this.get(i)));
  }
}
