import { version } from "../../package.json";
import { VitMsnError } from "../errors.ts";
import { is_a, is_error } from "../is_a.ts";
import { address_space_hint } from "./address_space.node.ts";
import { find_proxy, is_plain_node, read_variable } from "./proxy_settings.node.ts";

export { address_space_hint };

/** The hub's address, or a mirror's if HF_ENDPOINT names one. */
export const default_host = read_variable("HF_ENDPOINT")?.replace(/\/+$/, "") ?? "https://huggingface.co";

/** The environment variable that forbids the network; undefined if none does. */
export const offline_variable = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].find((name) =>
  /^(?:1|on|yes|true)$/i.test(read_variable(name) ?? ""),
);

/** The hub token from the environment. */
export function default_token(): string | undefined {
  return read_variable("HF_TOKEN") ?? read_variable("HUGGING_FACE_HUB_TOKEN");
}

/** The runtime's fetch, with this package's User-Agent; through a proxy if the environment variables name one. */
export const default_fetch: typeof fetch = async (input, init = {}) => {
  const hint = address_space_hint();
  if (hint !== undefined) throw new VitMsnError("OUT_OF_MEMORY", `Node's fetch can't start: ${hint}`);
  const headers = new Headers(init.headers);
  if (!headers.has("user-agent")) headers.set("user-agent", `vit-msn/${version}`);
  const address = typeof input === "string" || is_a(input, "URL") ? String(input) : undefined;
  // Deno and Bun read the same variables themselves.
  const proxy = address !== undefined && is_plain_node && find_proxy(new URL(address));
  if (!proxy) return globalThis.fetch(input, { ...init, headers });
  const { fetch_through_proxies } = await import("./proxied_fetch.node.ts");
  return fetch_through_proxies(new URL(address), { ...init, headers });
};

/** @throws VitMsnError INVALID_ARGUMENT for an invalid header. Unlike fetch's error, it doesn't repeat the value. */
export function check_header(name: string, value: string): void {
  if (/^[\w!#$%&'*+.^`|~-]+$/.test(name) && /^[\t -~\u0080-\u00ff]*$/.test(value)) return;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `The header ${JSON.stringify(name)} can't be sent: it holds a line feed or another character that HTTP headers may not have` +
      `${name === "authorization" ? ". It is made from the hub token: see the token option and HF_TOKEN" : ""}.`,
  );
}

const UNREACHABLE: ReadonlySet<string> = new Set([
  "ENOTFOUND",
  "EAI_AGAIN",
  "ECONNREFUSED",
  "ENETUNREACH",
  "EHOSTUNREACH",
  "ETIMEDOUT",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** Advice for a host that can't be reached, for the end of a message. */
export function failure_hint(address: string | URL, error: unknown): string {
  const proxy = is_plain_node && URL.canParse(address) ? find_proxy(new URL(address)) : undefined;
  const code = code_of(error);
  const hints: string[] = [];
  if (proxy) hints.push(`The request went through the proxy ${proxy.url.origin} (${proxy.variable}).`);
  if (/CERT|SIGNATURE/.test(code)) {
    hints.push(
      "If a proxy here re-signs https, set NODE_EXTRA_CA_CERTS to the file of its certificate authority.",
    );
  } else if (!proxy && UNREACHABLE.has(code)) {
    hints.push(
      "Check the network; behind a proxy set HTTPS_PROXY, and HF_ENDPOINT names a mirror of the hub.",
    );
  }
  return hints.map((hint) => ` ${hint}`).join("");
}

/** The system's code of an error or of what caused it. */
function code_of(error: unknown): string {
  for (let at = error; is_error(at); at = at.cause) {
    if ("code" in at && typeof at.code === "string") return at.code;
  }
  return "";
}
