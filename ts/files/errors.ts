import { VitMsnError } from "../errors.ts";
import { is_error } from "../is_a.ts";

/** Whether it is a system error with one of these codes. */
export function is_code(error: unknown, ...codes: string[]): boolean {
  return is_error(error) && "code" in error && codes.includes(String(error.code));
}

/** Turns a system error into a VitMsnError; other errors are returned unchanged. */
export function io_error(what: string, error: unknown): unknown {
  if (!is_error(error) || error instanceof VitMsnError || !("syscall" in error)) return error;
  return new VitMsnError("IO", `${what}: ${error.message}.`, {
    cause: error,
    details: { code: (error as { code?: string }).code },
  });
}
