import type { ImageInput } from "../../image/raw_image.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { PretrainedSource } from "../../loading/types.ts";

/** A file below a folder. */
export interface FoundFile {
  /** The path below the folder: the names of its parents, then the file's. */
  path: readonly string[];
  /** An input of RawImage.read: a path or a File. */
  file: ImageInput;
  /** A broken link. */
  is_broken: boolean;
}

/** The direct content of a folder, sorted. */
export interface FolderContent {
  folders: string[];
  files: string[];
}

/** The folder that a training run writes its checkpoints into. */
export interface OutputFolder {
  /** For messages. */
  readonly name: string;
  /** The names of the folders in it. */
  list(): Promise<string[]>;
  /**
   * Writes a new folder, which appears once `write` is done and replaces one of the same name. Leftovers of
   * killed processes are removed.
   */
  write(name: string, write: (directory: SaveDirectory) => Promise<void>): Promise<void>;
  remove(name: string): Promise<void>;
  /** The source of a folder in it, for from_pretrained. */
  source(name: string): Promise<PretrainedSource>;
}
