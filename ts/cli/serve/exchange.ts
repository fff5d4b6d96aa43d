import { setMaxListeners } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { setImmediate } from "node:timers/promises";
import { HttpError } from "./http_error.ts";

/** How long a refused client may continue sending before its connection is cut, so that it can read the answer. */
export const LINGER_MS = 5000;

/** A request and its response. */
export class Exchange {
  readonly request: IncomingMessage;
  readonly #response: ServerResponse;
  /** Whether the client waits for 100 Continue before it sends the body. */
  #awaits_continue: boolean;
  readonly #ended = new AbortController();
  #on_gone: (() => void) | undefined;
  /** Bytes of the body that were read. */
  bytes_read = 0;
  /** Images in the request, once they are known. */
  images = 0;

  constructor(request: IncomingMessage, response: ServerResponse, awaits_continue: boolean) {
    this.request = request;
    this.#response = response;
    this.#awaits_continue = awaits_continue;
    setMaxListeners(0, this.#ended.signal); // a request may have many images
    // A client that disconnects during the answer is not an error; the socket's close event handles it.
    response.on("error", () => {});
  }

  /** Fires when continuing is pointless; the reason is the HttpError to answer with. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  abort(reason: HttpError): void {
    this.#ended.abort(reason);
  }

  /** To be called when the client has disconnected. */
  leave(): void {
    this.abort(new HttpError(499, "CLIENT_CLOSED_REQUEST", "The client closed the connection."));
    this.#on_gone?.();
  }

  /** Reads the body, up to `max_bytes`. @throws HttpError the signal's reason, or what `too_large` returns. */
  read_body(max_bytes: number, too_large: () => HttpError): Promise<Buffer> {
    const { request, signal } = this;
    if (Number(request.headers["content-length"]) > max_bytes) return Promise.reject(too_large());
    if (this.#awaits_continue) this.#response.writeContinue();
    this.#awaits_continue = false;
    const body = new GrowingBuffer();
    return new Promise<Buffer>((resolve, reject) => {
      const give_up = () => reject(signal.reason);
      if (signal.aborted) give_up();
      signal.addEventListener("abort", give_up, { once: true });
      request.on("data", (chunk: Buffer) => {
        this.bytes_read += chunk.length;
        if (body.length + chunk.length > max_bytes) reject(too_large());
        else body.append(chunk);
      });
      request.once("end", () => resolve(body.bytes));
      request.once("error", () => reject(new HttpError(400, "BAD_REQUEST", "The body is incomplete.")));
    }).finally(() => request.removeAllListeners("data"));
  }

  /** Sends an answer and waits until it is sent or the client has gone. @param on_sent is called once either happens. */
  async send(
    status: number,
    headers: Readonly<Record<string, string>>,
    body: string,
    on_sent: () => void,
  ): Promise<void> {
    const { request } = this;
    const response = this.#response;
    if (!request.complete) {
      // The rest of a small body has arrived, but hasn't been read.
      request.resume();
      await setImmediate();
    }
    if (request.socket.destroyed) {
      on_sent();
      return;
    }
    const length = status === 204 ? {} : { "content-length": String(Buffer.byteLength(body)) };
    const gone = new Promise<void>((resolve) => {
      this.#on_gone = resolve;
    });
    if (request.complete) {
      const finished = new Promise<void>((resolve) => response.once("finish", resolve));
      response.writeHead(status, { ...headers, ...length }).end(body);
      await Promise.race([gone, finished]);
    } else {
      // The rest of the body isn't read, so nothing after it can be parsed.
      response.writeHead(status, { ...headers, ...length, connection: "close" }).write(body, on_sent);
      request.socket.end();
      await Promise.race([gone, this.#discard_body()]);
      request.socket.destroySoon();
    }
    on_sent();
  }

  /** If a connection is closed while its client still sends, the client may lose the answer. */
  #discard_body(): Promise<void> {
    const { request } = this;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, LINGER_MS);
      const done = () => {
        clearTimeout(timer);
        resolve();
      };
      request.once("end", done).once("error", done).once("close", done);
    });
  }
}

/** Chunks may be as small as a byte, and each stored separately would take a hundred. */
class GrowingBuffer {
  #buffer = Buffer.alloc(0);
  length = 0;

  append(chunk: Buffer): void {
    const needed = this.length + chunk.length;
    if (needed > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(needed, 2 * this.#buffer.length));
      this.#buffer.copy(larger, 0, 0, this.length);
      this.#buffer = larger;
    }
    chunk.copy(this.#buffer, this.length);
    this.length = needed;
  }

  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.length);
  }
}
