import { type ErrorCode, VitMsnError } from "../../index.ts";

/** The refusal of a request, with the status and code for the client. */
export class HttpError extends Error {
  readonly status: number;
  readonly code: string;
  /** Additional headers of the answer. */
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, code: string, message: string, headers: Record<string, string> = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

const RETRY_AFTER_SECONDS = "1";

/** A temporary refusal. */
export function unavailable(code: string, message: string, status: 429 | 503 = 503): HttpError {
  return new HttpError(status, code, message, { "retry-after": RETRY_AFTER_SECONDS });
}

export function invalid(message: string): HttpError {
  return new HttpError(400, "INVALID_ARGUMENT", message);
}

export function too_large(max_bytes: number): HttpError {
  return new HttpError(
    413,
    "PAYLOAD_TOO_LARGE",
    `The body and the image in it may each have up to ${max_bytes} bytes, also when decompressed.`,
  );
}

/** The statuses of library errors that the client caused. */
const STATUSES: Partial<Record<ErrorCode, number>> = {
  INVALID_IMAGE: 400,
  INVALID_ARGUMENT: 400,
  UNSUPPORTED: 415,
  NOT_FOUND: 422,
  ACCESS_DENIED: 422,
  NETWORK: 422,
};

/** The answer to the client for an error; undefined for internal errors, whose details clients don't get. */
export function to_http_error(error: unknown): HttpError | undefined {
  if (error instanceof HttpError) return error;
  if (!(error instanceof VitMsnError)) return undefined;
  const status = STATUSES[error.code];
  if (status !== undefined) return new HttpError(status, error.code, error.message);
  if (error.code === "OUT_OF_MEMORY") return unavailable(error.code, "The server is out of memory.");
  if (error.code === "ENGINE_DEAD" || error.code === "DISPOSED")
    return unavailable("ENGINE_DEAD", "The engine has failed; see /health.");
  return undefined;
}
