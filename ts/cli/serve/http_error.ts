import type { ContentfulStatusCode } from "hono/utils/http-status";
import { type ErrorCode, VitMsnError } from "../../index.ts";

/** A request that isn't answered, with the status and the code that its sender gets. */
export class HttpError extends Error {
  readonly status: ContentfulStatusCode;
  readonly code: string;

  constructor(status: ContentfulStatusCode, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** What is the sender's fault, and what comes of it. All else is the server's. */
const STATUSES: Partial<Record<ErrorCode, ContentfulStatusCode>> = {
  INVALID_IMAGE: 400,
  INVALID_ARGUMENT: 400,
  UNSUPPORTED: 415,
  NOT_FOUND: 422,
  ACCESS_DENIED: 422,
  NETWORK: 422,
  OUT_OF_MEMORY: 503,
};

export function to_http_error(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  const status = error instanceof VitMsnError ? STATUSES[error.code] : undefined;
  if (error instanceof VitMsnError && status !== undefined)
    return new HttpError(status, error.code, error.message);
  return new HttpError(500, "INTERNAL", "The server failed to compute this; its log says why.");
}
