import { BlockList, isIP } from "node:net";
import { VitMsnError } from "../errors.ts";

/** Whether this is Node itself: Deno and Bun have its modules, too. */
export const is_plain_node = !("Deno" in globalThis) && process.versions.bun === undefined;

export interface ProxySetting {
  url: URL;
  /** The environment variable that names it. */
  variable: string;
}

const DEFAULT_PORTS: Readonly<Record<string, string>> = { "http:": "80", "https:": "443" };

/** An environment variable's value; undefined if it is empty, or may not be read (Deno without --allow-env). */
export function read_variable(name: string): string | undefined {
  try {
    return process.env[name]?.trim() || undefined;
  } catch {
    return undefined;
  }
}

/**
 * The proxy for a URL, from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, whose lower-case names take precedence.
 * @throws VitMsnError INVALID_ARGUMENT or UNSUPPORTED for a proxy that can't be used.
 */
export function find_proxy(url: URL): ProxySetting | undefined {
  if (!(url.protocol in DEFAULT_PORTS) || is_exempt(url)) return undefined;
  const scheme = url.protocol.slice(0, -1);
  const names = [`${scheme}_proxy`, `${scheme}_proxy`.toUpperCase(), "all_proxy", "ALL_PROXY"];
  const variable = names.find((name) => may_be_trusted(name) && read_variable(name) !== undefined);
  return variable === undefined ? undefined : parse_proxy(variable, read_variable(variable) as string);
}

/** In a CGI program, HTTP_PROXY comes from the request's "Proxy" header. */
function may_be_trusted(name: string): boolean {
  return name !== "HTTP_PROXY" || read_variable("REQUEST_METHOD") === undefined;
}

function parse_proxy(variable: string, value: string): ProxySetting {
  const address = /^[a-z][a-z0-9+.-]*:\/\//i.test(value) ? value : `http://${value}`;
  // Messages don't repeat the value, because it may contain a password.
  if (!URL.canParse(address)) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `The environment variable ${variable} isn't the URL of a proxy; write it as http://host:port or http://user:password@host:port.`,
      { details: { variable } },
    );
  }
  const url = new URL(address);
  if (url.protocol in DEFAULT_PORTS) return { url, variable };
  throw new VitMsnError(
    "UNSUPPORTED",
    `The environment variable ${variable} names a ${url.protocol.slice(0, -1)} proxy; only http and https proxies are supported. ` +
      "Set HTTPS_PROXY to an http or https proxy, or list hosts that need none in NO_PROXY.",
    { details: { variable } },
  );
}

/** NO_PROXY lists names with their subdomains, "*", addresses and ranges ("10.0.0.0/8"), each with an optional port. */
function is_exempt(url: URL): boolean {
  const list = read_variable("no_proxy") ?? read_variable("NO_PROXY") ?? "";
  const host = url.hostname.replace(/^\[|\]$/g, "").toLowerCase();
  const port = url.port || DEFAULT_PORTS[url.protocol];
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .some((entry) => entry !== "" && (entry === "*" || matches(entry, host, port)));
}

function matches(entry: string, host: string, port: string | undefined): boolean {
  const range = /^([\da-f.:]+)\/(\d+)$/.exec(entry);
  if (range) return is_in_range(host, range[1] as string, Number(range[2]));
  const [, bracketed, plain, entry_port] =
    /^(?:\[(.+)\]|([^:]+|[^:]*:[^:]*:.*?))(?::(\d+))?$/.exec(entry) ?? [];
  if (entry_port !== undefined && entry_port !== port) return false;
  const name = (bracketed ?? plain ?? "").replace(/^\*?\./, "").replace(/\.$/, "");
  if (name === "") return false;
  return host === name || (isIP(host) === 0 && host.endsWith(`.${name}`));
}

function is_in_range(host: string, network: string, prefix: number): boolean {
  const [kind, network_kind] = [isIP(host), isIP(network)];
  if (kind === 0 || kind !== network_kind || prefix > (kind === 4 ? 32 : 128)) return false;
  const family = kind === 4 ? "ipv4" : "ipv6";
  const range = new BlockList();
  range.addSubnet(network, prefix, family);
  return range.check(host, family);
}
