import type { ImageInput } from "../../image/raw_image.ts";
import type { SaveDirectory } from "../../loading/storage_types.ts";
import type { PretrainedSource } from "../../loading/types.ts";

/** A file below a folder. */
export interface FoundFile {
  /** Names of the folders that lead to it, then its own. */
  path: readonly string[];
  /** What RawImage.read takes: a path or a File. */
  file: ImageInput;
  /** A link that leads nowhere. */
  is_broken: boolean;
}

/** What is directly in a folder, in order. */
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
  /** Writes a new folder, which appears when `write` is done; one of that name is replaced. What a killed process left is removed. */
  write(name: string, write: (directory: SaveDirectory) => Promise<void>): Promise<void>;
  remove(name: string): Promise<void>;
  /** What from_pretrained takes, for a folder in it. */
  source(name: string): Promise<PretrainedSource>;
}
