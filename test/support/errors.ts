import { expect } from "vitest";
import { type ErrorCode, VitMsnError } from "../../ts/errors.ts";

/** Expects a VitMsnError of this code whose message matches, and returns it. */
export async function expect_error(
  action: Promise<unknown> | (() => unknown),
  code: ErrorCode,
  message: RegExp,
) {
  const error = await (async () => (typeof action === "function" ? action() : action))().then(
    (value) => expect.unreachable(`expected ${code}, got a ${typeof value}`),
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(VitMsnError);
  expect((error as VitMsnError).message).toMatch(message);
  expect((error as VitMsnError).code).toBe(code);
  return error as VitMsnError;
}
