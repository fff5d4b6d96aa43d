import { check_header } from "#environment";
import { env } from "../env.ts";
import { is_error } from "../is_a.ts";
import { split_credentials } from "./credentials.ts";

/** Headers by name. */
export type HeaderRecord = Readonly<Record<string, string>>;

export interface FetchUrlInit {
  headers?: HeaderRecord;
  redirect?: RequestRedirect;
  signal?: AbortSignal | null;
}

/**
 * env.fetch for an address that may contain a user and a password, which are sent in an Authorization header.
 * @throws VitMsnError INVALID_ARGUMENT for text that isn't a URL and for headers that can't be sent; errors of
 *   env.fetch.
 */
export async function fetch_url(address: string | URL, init: FetchUrlInit = {}): Promise<Response> {
  const { url, authorization } = split_credentials(address);
  const headers: Record<string, string> = authorization === undefined ? {} : { authorization };
  for (const [name, value] of Object.entries(init.headers ?? {})) {
    check_header(name, value);
    headers[name.toLowerCase()] = value;
  }
  return env.fetch(url.href, { ...init, headers });
}

/** Why a fetch failed, from the error's causes: fetch's own message has no reason. */
export function failure_reason(error: unknown): string {
  let reason = "";
  for (let at = error; is_error(at); at = at.cause) {
    reason = at.message || ("code" in at ? String(at.code) : "") || reason;
  }
  return reason || String(error);
}
