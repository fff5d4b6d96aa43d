import type { IncomingMessage } from "node:http";
import { HttpError } from "./http_error.ts";
import { quoted } from "./json_body.ts";

/**
 * The names that the server goes by.
 *
 * A page of a stranger may have its own name resolve to 127.0.0.1 (DNS rebinding), and then is of the same origin as a
 * server there. It can't change the Host header, so servers at this machine's own addresses look at it. A name without
 * a dot is nobody's domain.
 */
export class AllowedHosts {
  readonly #named: ReadonlySet<string>;
  readonly #is_loopback: boolean;

  /** @param listens_at the address; names are checked there, or where some are given. */
  constructor(listens_at: string, named: readonly string[]) {
    this.#named = new Set(named.map(host_name));
    this.#is_loopback = is_loopback(host_name(listens_at.includes("::") ? `[${listens_at}]` : listens_at));
  }

  /** @throws HttpError where the request asks for another name. */
  check({ headersDistinct: { host: hosts = [] } }: IncomingMessage): void {
    if (!this.#is_loopback && this.#named.size === 0) return;
    const stranger = hosts.find((host) => !this.#allows(host_name(host)));
    if (stranger === undefined) return;
    throw new HttpError(
      421,
      "MISDIRECTED",
      `This server doesn't go by the name ${quoted(stranger)}; start it with --allow-host NAME if it should.`,
    );
  }

  #allows(name: string): boolean {
    return this.#named.has(name) || is_loopback(name) || !/[.:]/.test(name);
  }
}

/** Of a Host header: without port, in lower case. */
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

  /** What every answer to this request has beside its own headers. */
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

  /** What the answer to a browser's question beforehand has besides. */
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
