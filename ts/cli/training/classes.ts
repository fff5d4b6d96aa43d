import { VitMsnError } from "../../index.ts";

/** @throws VitMsnError INVALID_ARGUMENT where a folder to learn from holds one class only. */
export function check_classes(classes: readonly string[], folder: string): void {
  if (classes.length !== 1) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${folder} holds images of one class only (${classes[0]}); a classifier needs at least two, in a folder each.`,
    { details: { folder } },
  );
}
