import { type HeaderRecord, RawImage, show_url, VitMsnError } from "../../index.ts";
import { aborted, sleep } from "./errors.ts";

/** How images and shards are downloaded. */
export interface Patience {
  /** Headers of each request. */
  headers?: HeaderRecord;
  /** Tries after the first one. */
  retries: number;
  /** How long one try may take, and a shard's stream be silent. */
  timeout_ms: number;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 60_000;

/** Reads a picture from a URL through the package; what may mend by itself is tried again, each time after twice the wait. */
export function read_remote(url: string, patience: Patience, signal: AbortSignal): Promise<RawImage> {
  return with_retries(patience, signal, () => read_once(url, patience, signal));
}

async function read_once(
  url: string,
  { timeout_ms, headers }: Patience,
  signal: AbortSignal,
): Promise<RawImage> {
  const timeout = AbortSignal.timeout(timeout_ms);
  try {
    return await RawImage.read(url, { headers, signal: AbortSignal.any([signal, timeout]) });
  } catch (cause) {
    if (signal.aborted || !timeout.aborted) throw cause;
    throw network_error(show_url(url), `nothing arrived within ${timeout_ms / 1000} s`, cause);
  }
}

export async function with_retries<T>(
  { retries }: Patience,
  signal: AbortSignal,
  body: () => Promise<T>,
): Promise<T> {
  for (let tried = 0; ; tried++) {
    try {
      return await body();
    } catch (error) {
      if (signal.aborted) throw aborted(signal);
      if (tried >= retries || !may_mend(error)) throw error;
      await sleep(waiting_time(error, tried), signal);
    }
  }
}

/** A server that can't be reached or is overloaded may be back soon; one that refuses will refuse again. */
export function may_mend(error: unknown): error is VitMsnError {
  if (!(error instanceof VitMsnError) || error.code !== "NETWORK") return false;
  const { status } = error.details;
  return typeof status !== "number" || status === 408 || status === 425 || status === 429 || status >= 500;
}

function waiting_time(error: VitMsnError, tried: number): number {
  const asked = Number(error.details.retry_after) * 1000;
  const own = FIRST_WAIT_MS * 2 ** tried;
  return Math.min(Number.isFinite(asked) ? Math.max(asked, own) : own, LONGEST_WAIT_MS);
}

/** Names of query parameters that hold secrets: signatures, tokens and keys of the usual stores and services. */
const SECRET_PARAMETER =
  /sig|token|secret|passw|pwd|credential|auth|hmac|jwt|session|policy|^(?:x-)?key$|(?:api|access)[-_]?key/i;

/**
 * A URL as rows, lists of failures and journals show it: without user and password, and its query, which may be what names the
 * image, without the values of secret parameters. A path is returned as it is.
 */
export function source_name(source: string): string {
  const shown = show_url(source);
  if (!/^https?:/i.test(source) || !URL.canParse(source)) return shown;
  const query = new URL(source).search.slice(1);
  if (query === "") return shown;
  const parts = query.split("&").map((part) => {
    const name = part.split("=", 1)[0] as string;
    return SECRET_PARAMETER.test(name) ? `${name}=***` : part;
  });
  return `${shown}?${parts.join("&")}`;
}

export function network_error(name: string, reason: string, cause: unknown): VitMsnError {
  return new VitMsnError(
    "NETWORK",
    `${name} can't be fetched: ${reason}. Check the address and the network.`,
    {
      cause,
      details: { file: name },
    },
  );
}

export function status_error(name: string, { status, statusText, headers }: Response): VitMsnError {
  const code =
    status === 404 || status === 410
      ? "NOT_FOUND"
      : status === 401 || status === 403
        ? "ACCESS_DENIED"
        : "NETWORK";
  return new VitMsnError(code, `${name} answered ${`${status} ${statusText}`.trim()}; check the address.`, {
    details: { file: name, status, retry_after: headers.get("retry-after") ?? undefined },
  });
}
