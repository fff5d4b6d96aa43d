import { VitMsnError } from "../errors.ts";

/** Whether it is a system error with one of these codes. */
export function is_code(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}

/** Turns a system error into a VitMsnError; other errors are returned unchanged. */
export function io_error(what: string, error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof VitMsnError || !("syscall" in error)) return error;
  return new VitMsnError("IO", `${what}: ${error.message}.`, {
    cause: error,
    details: { code: (error as { code?: string }).code },
  });
}
