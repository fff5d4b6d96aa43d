import { env } from "../../index.ts";
import { HttpError, too_large } from "./http_error.ts";

const MAX_REDIRECTS = 5;

/**
 * Fetches an image that a request names by URL. The server can reach hosts that its clients can't, such as its own network, so
 * only hosts that were allowed are contacted, also for redirects.
 */
export class AllowedUrls {
  readonly #hosts: ReadonlySet<string>;
  readonly #max_bytes: number;

  /** @param hosts host names as in a URL, with the port if it isn't the scheme's default. */
  constructor(hosts: readonly string[], max_bytes: number) {
    this.#hosts = new Set(hosts.map((host) => host.toLowerCase()));
    this.#max_bytes = max_bytes;
  }

  async fetch(address: string, signal: AbortSignal): Promise<Blob> {
    if (this.#hosts.size === 0)
      throw new HttpError(
        403,
        "ACCESS_DENIED",
        "This server doesn't fetch URLs. Start it with --allow-url-host <host>, or send the image itself.",
      );
    let url = this.#check(address);
    for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
      const response = await this.#request(url, signal);
      const target =
        response.status >= 300 && response.status < 400 ? response.headers.get("location") : null;
      if (target === null) return this.#read(response, url);
      await response.body?.cancel();
      url = this.#check(target, url);
    }
    throw failed(url, `redirects more than ${MAX_REDIRECTS} times`);
  }

  #check(address: string, base?: URL): URL {
    const url = URL.canParse(address, base?.href) ? new URL(address, base) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol))
      throw new HttpError(400, "INVALID_ARGUMENT", "The image's URL must be an http or https URL.");
    if (!this.#hosts.has(url.host) || url.username !== "" || url.password !== "")
      throw new HttpError(
        403,
        "ACCESS_DENIED",
        `This server doesn't fetch from ${url.host}, which no --allow-url-host names.`,
      );
    return url;
  }

  async #request(url: URL, signal: AbortSignal): Promise<Response> {
    try {
      return await env.fetch(url.href, { redirect: "manual", signal });
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw failed(url, `can't be reached (${(error as Error).message})`);
    }
  }

  async #read(response: Response, url: URL): Promise<Blob> {
    if (!response.ok) {
      await response.body?.cancel();
      throw failed(url, `answered with status ${response.status}`);
    }
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    let size = 0;
    try {
      for await (const chunk of response.body ?? []) {
        size += chunk.length;
        if (size > this.#max_bytes) break;
        chunks.push(chunk as Uint8Array<ArrayBuffer>);
      }
    } catch (error) {
      throw failed(url, `was interrupted (${(error as Error).message})`);
    }
    if (size > this.#max_bytes) throw too_large(this.#max_bytes);
    return new Blob(chunks);
  }
}

function failed(url: URL, what: string): HttpError {
  return new HttpError(422, "NETWORK", `${url.origin}${url.pathname} ${what}.`);
}
