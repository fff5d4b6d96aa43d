import { VitMsnError } from "../errors.ts";

/** Whether it is a system's error with one of these codes. */
export function is_code(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}

/** The system's error as ours; other errors as they are. */
export function io_error(what: string, error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof VitMsnError || !("syscall" in error)) return error;
  return new VitMsnError("IO", `${what}: ${error.message}.`, {
    cause: error,
    details: { code: (error as { code?: string }).code },
  });
}
