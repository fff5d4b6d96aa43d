/**
 * The kind of error: a stable code that a program can switch on. The message is for people: it names the file, key or
 * argument, what was expected and what to do.
 */
export type ErrorCode =
  | "INVALID_ARGUMENT" // an option or input of a call is wrong: shape, type, range, NaN
  | "INVALID_CONFIG" // config.json or preprocessor_config.json has an invalid value
  | "INVALID_CHECKPOINT" // a weights file is truncated, inconsistent or requests something forbidden
  | "CHECKPOINT_MISMATCH" // a valid weights file that doesn't fit the config: missing or misshapen keys
  | "INVALID_IMAGE" // bytes that aren't an image, or an image too large to decode
  | "NOT_FOUND" // a file, a repository or a revision that doesn't exist
  | "ACCESS_DENIED" // a gated or private repository
  | "NETWORK" // the host can't be reached, answers with an error, disconnects or sends a damaged file
  | "OFFLINE" // only local files are allowed, and the file isn't among them
  | "IO" // the disk or the cache failed
  | "UNSUPPORTED" // a valid request that this build or this runtime can't serve
  | "OUT_OF_MEMORY" // the engine's memory is full
  | "DISPOSED" // the model, tensor or pipeline was disposed
  | "DIVERGED" // training's loss or gradients are no longer finite
  | "ABORTED" // the caller's AbortSignal fired
  | "ENGINE_DEAD"; // the engine crashed; load the model again

/** Every error that this package throws deliberately. `details` has the same facts as the message, for programs. */
export class VitMsnError extends Error {
  /** A literal, since minifiers rename classes. */
  static override readonly name: string = "VitMsnError";
  override readonly name = "VitMsnError";
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }
}

export function invalid_argument(message: string, argument?: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, {
    details: argument === undefined ? {} : { argument },
  });
}

/** A value for a message: text in quotes, plain data as JSON, anything else by its class. */
export function show(value: unknown): string {
  if (typeof value === "function") return "a function";
  if (typeof value !== "string" && Object(value) !== value) return String(value);
  const kind = Object(value).constructor?.name; // of any realm
  if (!["String", "Array", "Object", undefined].includes(kind)) return `an object of class ${kind}`;
  try {
    const json = is_numbers(value) ? `[${value}]` : JSON.stringify(value);
    return json.length > 100 ? `${json.slice(0, 100)}…` : json;
  } catch {
    return "an object";
  }
}

/** JSON has null for NaN and the infinities. */
function is_numbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}

/** Like `work`, but rejects with ABORTED as soon as `signal` fires; the result of `work` is then ignored. */
export async function until_aborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  what: string,
): Promise<T> {
  if (signal === undefined) return work;
  let stop: (() => void) | undefined;
  const aborted = new Promise<void>((resolve) => {
    stop = resolve;
    signal.addEventListener("abort", stop);
  });
  try {
    await Promise.race([work, aborted]);
    throw_if_aborted(signal, what);
    return await work;
  } finally {
    signal.removeEventListener("abort", stop as () => void);
  }
}

/** Throws ABORTED once `signal` has fired; the signal's reason is the error's cause. */
export function throw_if_aborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted) {
    throw new VitMsnError("ABORTED", `${what} was aborted by its AbortSignal.`, { cause: signal.reason });
  }
}
