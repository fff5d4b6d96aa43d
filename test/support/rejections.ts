import { VitMsnError } from "vit-msn";
import { expect } from "vitest";

/** What a promise of the built package rejects with, which must be a VitMsnError. */
export async function error_of(promise: Promise<unknown>): Promise<VitMsnError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(VitMsnError);
  return error as VitMsnError;
}
