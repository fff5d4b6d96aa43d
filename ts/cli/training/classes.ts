import { VitMsnError } from "../../index.ts";

/** @throws VitMsnError INVALID_ARGUMENT if a folder to learn from has a single class. */
export function check_classes(classes: readonly string[], folder: string): void {
  if (classes.length !== 1) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${folder} has images of only one class (${classes[0]}); a classifier needs at least two, each in its own folder.`,
    { details: { folder } },
  );
}
