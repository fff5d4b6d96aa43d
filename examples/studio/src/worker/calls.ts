/**
 * Calls of the page into its Worker: a method by name, its arguments by structured clone, progress on the way, and an
 * end by result, error or the caller's AbortSignal.
 */

/** What the page asks for. */
export type Request = { id: number; method: string; args: unknown[] } | { id: number; abort: true };

/** What it hears back. */
export type Reply =
  | { id: number; progress: unknown }
  | { id: number; result: unknown }
  | { id: number; error: PlainError };

/** An error as it crosses: structured clone loses our classes. */
export interface PlainError {
  name: string;
  message: string;
  code?: string;
}

/** What every method gets besides its arguments. */
export interface Call {
  signal: AbortSignal;
  progress: (info: unknown) => void;
}

export function plain_error(error: unknown): PlainError {
  if (!(error instanceof Error)) return { name: "Error", message: String(error) };
  const { code } = error as { code?: unknown };
  return { name: error.name, message: error.message, ...(typeof code === "string" && { code }) };
}

/** An error that came from the Worker; `code` is VitMsnError's. */
export class StudioError extends Error {
  readonly code: string | undefined;

  constructor({ message, code }: PlainError) {
    super(message);
    this.name = "StudioError";
    this.code = code;
  }
}

export const was_aborted = (error: unknown): boolean =>
  (error instanceof StudioError && error.code === "ABORTED") ||
  (error instanceof DOMException && error.name === "AbortError");

/** Everything in a value that is handed over instead of copied. */
export function transferables(value: unknown, found: Transferable[] = []): Transferable[] {
  if (ArrayBuffer.isView(value)) {
    if (value.buffer instanceof ArrayBuffer && !found.includes(value.buffer)) found.push(value.buffer);
  } else if (Array.isArray(value)) {
    for (const item of value) transferables(item, found);
  } else if (
    value !== null &&
    typeof value === "object" &&
    Object.getPrototypeOf(value) === Object.prototype
  ) {
    for (const item of Object.values(value)) transferables(item, found);
  }
  return found;
}
