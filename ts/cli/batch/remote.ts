import { sleep } from "../../files/index.ts";
import { type HeaderRecord, RawImage, show_url, VitMsnError } from "../../index.ts";
import { aborted } from "./errors.ts";
import type { ReadingOptions } from "./listed_image.ts";

/** Settings for downloading images and shards. */
export interface DownloadSettings {
  /** Headers sent with each request. */
  headers?: HeaderRecord;
  /** Attempts after the first. */
  retries: number;
  /** The longest time for one attempt, and for a shard's stream to send nothing. */
  timeout_ms: number;
}

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 60_000;

/** Reads an image from a URL; transient errors are retried, each time after twice the delay. */
export function read_remote(
  url: string,
  download: DownloadSettings,
  options: ReadingOptions,
): Promise<RawImage> {
  return with_retries(download, options.signal, () => read_once(url, download, options));
}

async function read_once(
  url: string,
  { timeout_ms, headers }: DownloadSettings,
  { signal, admit }: ReadingOptions,
): Promise<RawImage> {
  const timeout = AbortSignal.timeout(timeout_ms);
  try {
    return await RawImage.read(url, { headers, admit, signal: AbortSignal.any([signal, timeout]) });
  } catch (cause) {
    if (signal.aborted || !timeout.aborted) throw cause;
    throw network_error(show_url(url), `nothing arrived within ${timeout_ms / 1000} s`, cause);
  }
}

export async function with_retries<T>(
  { retries }: DownloadSettings,
  signal: AbortSignal,
  body: () => Promise<T>,
): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await body();
    } catch (error) {
      if (signal.aborted) throw aborted(signal);
      if (attempt >= retries || !is_transient(error)) throw error;
      await sleep(retry_delay(error, attempt), signal);
      if (signal.aborted) throw aborted(signal);
    }
  }
}

/** Whether another attempt may succeed: an unreachable or overloaded server may recover, a refusal is final. */
export function is_transient(error: unknown): error is VitMsnError {
  if (!(error instanceof VitMsnError) || error.code !== "NETWORK") return false;
  const { status } = error.details;
  return typeof status !== "number" || status === 408 || status === 425 || status === 429 || status >= 500;
}

function retry_delay(error: VitMsnError, attempt: number): number {
  const asked = Number(error.details.retry_after) * 1000;
  const usual = FIRST_WAIT_MS * 2 ** attempt;
  return Math.min(Number.isFinite(asked) ? Math.max(asked, usual) : usual, MAX_WAIT_MS);
}

/** Names of query parameters that hold secrets: signatures, tokens and keys of common stores and services. */
const SECRET_PARAMETER =
  /sig|token|secret|passw|pwd|credential|auth|hmac|jwt|session|policy|^(?:x-)?key$|(?:api|access)[-_]?key/i;

/**
 * A URL as rows, lists of failures and journals show it: without user name and password, and without the values of secret query
 * parameters; the rest of the query may be what identifies the image. A path is returned unchanged.
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
