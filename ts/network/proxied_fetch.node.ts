import http, { type ClientRequest, type IncomingMessage, type RequestOptions } from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import { type Duplex, pipeline, Readable } from "node:stream";
import { connect } from "node:tls";
import { createBrotliDecompress, createGunzip, createInflate } from "node:zlib";
import { VitMsnError } from "../errors.ts";
import { basic_authorization } from "./credentials.ts";
import { find_proxy, type ProxySetting } from "./proxy_settings.node.ts";
import { show_url } from "./show_url.ts";

const MAX_REDIRECTS = 20;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
const STATUSES_WITHOUT_BODY: ReadonlySet<number> = new Set([204, 205, 304]);
const HTTPS_PORT = "443";

/** The options of fetch that are used here: requests are GETs. */
type GetInit = Pick<RequestInit, "redirect" | "signal"> & { headers: Headers };

/**
 * GETs a URL like fetch, through the proxies of the environment variables, which Node's fetch doesn't read by default.
 * @throws VitMsnError NETWORK if a proxy refuses; other errors if a host can't be reached.
 */
export async function fetch_through_proxies(
  url: URL,
  { redirect, signal, headers: given }: GetInit,
): Promise<Response> {
  const headers = new Headers(given);
  if (!headers.has("accept-encoding")) headers.set("accept-encoding", "gzip, deflate, br");
  let at = url;
  for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
    const response = await get(at, headers, signal ?? undefined);
    const { location } = response.headers;
    const is_redirect = location !== undefined && REDIRECTS.has(response.statusCode as number);
    if (redirect === "manual" || !is_redirect) return to_response(response);
    response.destroy();
    const target = new URL(location, at);
    // Only the caller's URL may carry credentials.
    target.username = target.password = "";
    if (target.origin !== at.origin) for (const name of ["authorization", "cookie"]) headers.delete(name);
    at = target;
  }
  throw new TypeError(`redirected more than ${MAX_REDIRECTS} times`);
}

async function get(url: URL, headers: Headers, signal: AbortSignal | undefined): Promise<IncomingMessage> {
  const request = await start(url, Object.fromEntries(headers), signal);
  return new Promise((resolve, reject) => {
    request
      .once("response", resolve)
      .once("error", (error) => reject(signal?.aborted ? signal.reason : error));
    request.end();
  });
}

async function start(
  url: URL,
  headers: Record<string, string>,
  signal: AbortSignal | undefined,
): Promise<ClientRequest> {
  const proxy = find_proxy(url);
  if (!proxy) return protocol_of(url).request(url, { headers, signal });
  if (url.protocol === "http:") {
    // Over http the proxy sends the request.
    const all = { ...headers, ...authorization_for(proxy), host: url.host };
    return request_proxy(proxy, { headers: all, path: url.href, signal });
  }
  const socket = await open_tunnel(proxy, url, signal);
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const createConnection = () => connect({ socket, host, servername: isIP(host) === 0 ? host : "" });
  return https.request(url, { headers, signal, createConnection });
}

const protocol_of = ({ protocol }: URL) => (protocol === "https:" ? https : http);

/** `auth` would be the proxy's user and password, sent to the target host. */
function request_proxy({ url }: ProxySetting, options: RequestOptions): ClientRequest {
  return protocol_of(url).request(url, { ...options, auth: undefined, agent: false });
}

function authorization_for({ url }: ProxySetting): Record<string, string> {
  const authorization = basic_authorization(url);
  return authorization === undefined ? {} : { "proxy-authorization": authorization };
}

/** A tunnel to a host through a proxy, which only learns the host's name. */
function open_tunnel(proxy: ProxySetting, url: URL, signal: AbortSignal | undefined): Promise<Duplex> {
  const target = `${url.hostname}:${url.port || HTTPS_PORT}`;
  const headers = { host: target, ...authorization_for(proxy) };
  const request = request_proxy(proxy, { method: "CONNECT", path: target, headers, signal });
  return new Promise((resolve, reject) => {
    request.once("connect", ({ statusCode = 0 }, socket) => {
      if (statusCode >= 200 && statusCode < 300) return resolve(socket);
      socket.destroy();
      reject(refused(proxy, target, statusCode));
    });
    request.once("error", (error) => reject(signal?.aborted ? signal.reason : error));
    request.end();
  });
}

function refused({ url, variable }: ProxySetting, target: string, status: number): Error {
  const what = `The proxy ${show_url(url)} (${variable}) answered with status ${status} for ${target}`;
  // Errors other than VitMsnError are retried.
  if (status >= 500) return new Error(what);
  const advice =
    status === 407
      ? `It requires a user and a password: set ${variable} to http://user:password@host:port.`
      : `Check ${variable}, or list the host in NO_PROXY if it can be reached without a proxy.`;
  return new VitMsnError("NETWORK", `${what}. ${advice}`, { details: { url: show_url(url), status } });
}

function to_response(message: IncomingMessage): Response {
  const { statusCode: status = 0, statusMessage: statusText } = message;
  const headers = new Headers();
  for (let i = 0; i < message.rawHeaders.length; i += 2)
    headers.append(message.rawHeaders[i] as string, message.rawHeaders[i + 1] as string);
  if (STATUSES_WITHOUT_BODY.has(status)) {
    message.resume();
    return new Response(null, { status, statusText, headers });
  }
  const body = Readable.toWeb(decompress(message, headers.get("content-encoding")));
  return new Response(body as unknown as ReadableStream, { status, statusText, headers });
}

const DECODERS: Readonly<Record<string, () => Duplex>> = {
  gzip: createGunzip,
  "x-gzip": createGunzip,
  deflate: createInflate,
  br: createBrotliDecompress,
};

function decompress(message: IncomingMessage, encoding: string | null): Readable {
  const decoder = DECODERS[encoding?.trim().toLowerCase() ?? ""];
  // An error of either stream ends the body.
  return decoder === undefined ? message : pipeline(message, decoder(), () => {});
}
