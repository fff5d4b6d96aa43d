import type { IncomingMessage } from "node:http";
import { HttpError } from "./http_error.ts";
import { quoted } from "./json_body.ts";

/**
 * The host names that the server answers to.
 *
 * A malicious page may let its own domain resolve to 127.0.0.1 (DNS rebinding), which gives it the same origin as a server
 * there. It can't change the Host header, so servers on loopback addresses check it. A name without a dot
 * can't be anyone's domain.
 */
export class AllowedHosts {
  readonly #named: ReadonlySet<string>;
  readonly #is_loopback: boolean;

  /** @param listens_at the server's address: names are checked on a loopback address, or if any are `named`. */
  constructor(listens_at: string, named: readonly string[]) {
    this.#named = new Set(named.map(host_name));
    this.#is_loopback = is_loopback(host_name(listens_at.includes("::") ? `[${listens_at}]` : listens_at));
  }

  /** @throws HttpError if the request is for another host name. */
  check({ headersDistinct: { host: hosts = [] } }: IncomingMessage): void {
    if (!this.#is_loopback && this.#named.size === 0) return;
    const unknown = hosts.find((host) => !this.#allows(host_name(host)));
    if (unknown === undefined) return;
    throw new HttpError(
      421,
      "MISDIRECTED",
      `This server doesn't answer to the host name ${quoted(unknown)}; start it with --allow-host <name> to allow it.`,
    );
  }

  #allows(name: string): boolean {
    return this.#named.has(name) || is_loopback(name) || !/[.:]/.test(name);
  }
}

/** The name in a Host header, without port and in lower case. */
function host_name(host: string): string {
  return host.trim().toLowerCase().replace(/:\d*$/, "").replace(/\.$/, "");
}

function is_loopback(name: string): boolean {
  return (
    name === "localhost" ||
    name.endsWith(".localhost") ||
    name === "[::1]" ||
    /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(name)
  );
}

const PREFLIGHT_SECONDS = "600";
const HEADER_NAMES = /^[\w.-]+( *, *[\w.-]+)*$/;

/** Cross-origin resource sharing: which pages of other origins may read answers. */
export class Cors {
  readonly #origins: ReadonlySet<string>;

  /** @param origins as browsers send them, or "*". */
  constructor(origins: readonly string[]) {
    this.#origins = new Set(origins);
  }

  /** Headers for every answer to this request. */
  headers(request: IncomingMessage): Record<string, string> {
    if (this.#origins.size === 0) return {};
    const allowed = this.#allowed(request);
    return {
      ...(allowed !== "*" && { vary: "origin" }),
      ...(allowed !== undefined && {
        "access-control-allow-origin": allowed,
        "access-control-expose-headers": "retry-after",
      }),
    };
  }

  /** Additional headers for the answer to a preflight request. */
  preflight(request: IncomingMessage, methods: string): Record<string, string> {
    if (this.#allowed(request) === undefined) return {};
    const wanted = request.headers["access-control-request-headers"] ?? "";
    return {
      "access-control-allow-methods": methods,
      "access-control-allow-headers": HEADER_NAMES.test(wanted) ? wanted : "content-type",
      "access-control-max-age": PREFLIGHT_SECONDS,
    };
  }

  #allowed({ headers: { origin } }: IncomingMessage): string | undefined {
    if (this.#origins.has("*")) return "*";
    return origin !== undefined && this.#origins.has(origin) ? origin : undefined;
  }
}
