import { default_token, failure_hint } from "#environment";
import { fetch_is_unrestricted, may_send_token } from "#storage";
import { env } from "../env.ts";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { failure_reason, fetch_url } from "../network/fetch_url.ts";
import { show_url } from "../network/show_url.ts";

/** A failure that a retry may fix. */
export class TransientError extends Error {
  /** The wait that the server asks for. */
  readonly retry_after_ms: number | undefined;
  /** The error to throw once no attempt is left. */
  readonly final: VitMsnError;

  constructor(final: VitMsnError, retry_after_ms?: number) {
    super(final.message);
    this.final = final;
    this.retry_after_ms = retry_after_ms;
  }
}

export interface RequestOptions {
  headers?: Readonly<Record<string, string>>;
  token?: string;
  /** The Authorization header of the URL's own user and password; not sent along a redirect to another origin. */
  authorization?: string;
  signal?: AbortSignal;
  /** How long the server may be silent; default 60 s. */
  silence_ms?: number;
}

const MAX_REDIRECTS = 10;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
/** A server that is silent for this long counts as gone. */
const SILENCE_MS = 60_000;

/** An answer whose body has the same timeout and abort signal as its headers. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** false if the browser hides headers of another origin, including Content-Encoding. */
  readonly headers_visible: boolean;
  /** SHA-256 of the whole file in hex, if the server announced it. */
  readonly sha256: string | undefined;
  /** Bytes of the whole file, if the hub announced them. */
  readonly size: number | undefined;
  chunks(): AsyncGenerator<Uint8Array, void, undefined>;
  /** Ends the request, whatever is left of its body. */
  cancel(): void;
}

/**
 * Requests `url`. The answer has status 200, 206, 404, 410 or 416; any other status throws, with a TransientError if a
 * retry may help. The token is sent only to env.remote_host's origin, and never along a redirect to another origin.
 */
export async function request(url: URL, options: RequestOptions): Promise<Answer> {
  throw_if_aborted(options.signal, `The download of ${show_url(url)}`);
  const watch = new Watch(options.signal, options.silence_ms ?? SILENCE_MS);
  try {
    const { response, sha256, size } = await follow(url, options, watch);
    await check_status(response, url, options);
    return {
      status: response.status,
      headers: response.headers,
      headers_visible: fetch_is_unrestricted || response.type === "basic",
      sha256,
      size,
      chunks: () => read_body(response, url, watch, options.signal),
      cancel: () => watch.end(),
    };
  } catch (error) {
    watch.end();
    throw translate(error, url, options.signal);
  }
}

interface Followed {
  response: Response;
  sha256: string | undefined;
  size: number | undefined;
}

async function follow(url: URL, options: RequestOptions, watch: Watch): Promise<Followed> {
  let at = url;
  let sha256: string | undefined;
  let size: number | undefined;
  for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
    const response = await fetch_url(at, {
      headers: make_headers(at, url, options),
      redirect: fetch_is_unrestricted ? "manual" : "follow",
      signal: watch.signal,
    });
    throw_if_aborted(options.signal, `The download of ${show_url(url)}`);
    watch.touch();
    // The first one counts, since it comes from the host that the caller named, not from one that it redirects to.
    sha256 ??= linked_sha256(response.headers);
    size ??= Number(response.headers.get("x-linked-size")) || undefined;
    const target = REDIRECTS.has(response.status) ? response.headers.get("location") : null;
    if (target === null) return { response, sha256, size };
    await response.body?.cancel();
    at = redirect_target(target, at);
  }
  throw network_error(url, `redirects more than ${MAX_REDIRECTS} times`);
}

/**
 * The SHA-256 that Hugging Face's hub announces when it redirects to a large file. A plain ETag isn't one: it is a git
 * hash for small files, and another hash of the same length on the servers that store large files.
 */
function linked_sha256(headers: Headers): string | undefined {
  return /^"([0-9a-f]{64})"$/i.exec(headers.get("x-linked-etag") ?? "")?.[1]?.toLowerCase();
}

function redirect_target(target: string, from: URL): URL {
  const url = URL.canParse(target, from.href) ? new URL(target, from) : undefined;
  if (!url || !/^https?:$/.test(url.protocol) || (from.protocol === "https:" && url.protocol === "http:")) {
    throw network_error(from, "redirects to an address that isn't safe to follow");
  }
  // Only the caller's URL may carry credentials.
  url.username = url.password = "";
  return url;
}

function make_headers(
  at: URL,
  first: URL,
  { headers, authorization, token }: RequestOptions,
): Record<string, string> {
  // Weights don't compress, and a compressed answer has no known size and can't be resumed.
  const encoding: Record<string, string> = fetch_is_unrestricted ? { "accept-encoding": "identity" } : {};
  const bearer = is_hub(at) ? bearer_of(at, token ?? default_token()) : undefined;
  const allowed = bearer ?? (at.origin === first.origin ? authorization : undefined);
  return { ...encoding, ...(allowed !== undefined && { authorization: allowed }), ...headers };
}

/** Whether a URL is on the hub, env.remote_host. */
function is_hub(url: URL): boolean {
  return URL.canParse(env.remote_host) && url.origin === new URL(env.remote_host).origin;
}

function bearer_of(url: URL, token: string | undefined): string | undefined {
  const trimmed = token?.trim();
  return trimmed && may_send_token(url) ? `Bearer ${trimmed}` : undefined;
}

async function check_status(response: Response, url: URL, options: RequestOptions): Promise<void> {
  const { status } = response;
  const hub_error = response.headers.get("x-error-code");
  if (status === 200 || status === 206 || status === 416) return;
  if (hub_error === "RepoNotFound" && !options.token) throw missing_repo(url, status);
  if (hub_error === "RevisionNotFound") throw not_found(url, "The repository has no such revision", status);
  if (status === 404 || status === 410) return;
  if (status === 401 || status === 403) throw access_denied(url, status);
  const error = network_error(
    url,
    `answers with status ${status}${response.statusText ? ` (${response.statusText})` : ""}`,
    status,
  );
  const transient = status === 408 || status === 429 || status >= 500;
  throw transient ? new TransientError(error, retry_after(response)) : error;
}

function retry_after(response: Response): number | undefined {
  const value = response.headers.get("retry-after");
  if (value === null) return undefined;
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(wait) ? Math.max(0, wait) : undefined;
}

async function* read_body(
  response: Response,
  url: URL,
  watch: Watch,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = response.body?.getReader();
  try {
    while (reader) {
      const { done, value } = await reader.read();
      if (done) return;
      // The caller's own fetch may ignore the signal.
      throw_if_aborted(signal, `The download of ${show_url(url)}`);
      watch.touch();
      yield value;
      watch.touch();
    }
  } catch (error) {
    throw translate(error, url, signal);
  } finally {
    watch.end();
  }
}

/** Ends a request when the caller aborts it or the server falls silent. */
class Watch {
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  readonly #silence_ms: number;
  readonly #on_abort = () => this.end();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(outer: AbortSignal | undefined, silence_ms: number) {
    this.#silence_ms = silence_ms;
    this.signal = this.#controller.signal;
    this.#outer = outer;
    outer?.addEventListener("abort", this.#on_abort);
    this.touch();
  }

  touch(): void {
    clearTimeout(this.#timer);
    const give_up = () => this.end(new Error(`nothing arrived for ${this.#silence_ms / 1000} s`));
    this.#timer = setTimeout(give_up, this.#silence_ms);
  }

  end(reason?: Error): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#on_abort);
    this.#controller.abort(reason);
  }
}

/** Converts errors of fetch and its body: to the caller's abort, or to a connection failure. */
function translate(error: unknown, url: URL, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) {
    return new VitMsnError("ABORTED", `The download of ${show_url(url)} was aborted by its AbortSignal.`, {
      cause: signal.reason,
    });
  }
  if (error instanceof VitMsnError || error instanceof TransientError) return error;
  const what = `can't be reached, or the connection broke (${failure_reason(error)})`;
  return new TransientError(network_error(url, what, undefined, error));
}

export function network_error(url: URL, what: string, status?: number, cause?: unknown): VitMsnError {
  return new VitMsnError("NETWORK", `${show_url(url)} ${what}.${failure_hint(url, cause)}`, {
    cause,
    details: { url: show_url(url), status },
  });
}

function not_found(url: URL, what: string, status: number): VitMsnError {
  return new VitMsnError("NOT_FOUND", `${what}: ${show_url(url)}.`, {
    details: { url: show_url(url), status },
  });
}

function missing_repo(url: URL, status: number): VitMsnError {
  return not_found(url, "The repository doesn't exist, or is private and needs a token", status);
}

function access_denied(url: URL, status: number): VitMsnError {
  const shown = show_url(url);
  const message = is_hub(url)
    ? `${shown} can't be read (status ${status}): the model is gated or private. Accept its terms on its page and ` +
      "pass a token that may read it with the token option or in the environment variable HF_TOKEN."
    : `${shown} can't be read: its server answers with status ${status}. Check the address.`;
  return new VitMsnError("ACCESS_DENIED", message, { details: { url: shown, status } });
}
