import type { SaveDirectory } from "../../loading/storage_types.ts";

/** A part of a data set, by its name in Hugging Face datasets. */
export type Split = "train" | "validation" | "test";

/** The words in the names of folders and files that datasets recognises as splits. */
const WORDS: Readonly<Record<Split, RegExp>> = {
  train: word("train|training"),
  validation: word("validation|valid|val|dev"),
  test: word("test|testing|eval|evaluation"),
};

function word(alternatives: string): RegExp {
  return new RegExp(`(?:^|[-._ \\d])(?:${alternatives})(?:$|[-._ \\d])`, "i");
}

/** The split that a folder's or file's name stands for. */
export function split_of(name: string): Split | undefined {
  return (Object.keys(WORDS) as Split[]).find((split) => WORDS[split].test(name));
}

/** A folder's name, for messages. */
export function name_of_folder(directory: SaveDirectory): string {
  return typeof directory === "object" && "name" in directory ? directory.name : String(directory);
}
