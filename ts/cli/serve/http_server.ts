import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  STATUS_CODES,
} from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setImmediate as next_turn } from "node:timers/promises";
import { VitMsnError } from "../../index.ts";
import { Exchange, LINGER_MS } from "./exchange.ts";
import { HttpError } from "./http_error.ts";

export interface ServerOptions {
  /** For a request to arrive, and for a client to take its answer. */
  timeout_ms: number;
  /** How long a connection stays open between requests; 0 closes it behind its answer. */
  keep_alive_ms: number;
}

/** Answers to exchanges; it never rejects. */
export type Answerer = (exchange: Exchange) => Promise<Answer>;

export interface Answer {
  status: number;
  headers: Readonly<Record<string, string>>;
  body: string;
}

/** Requests of one connection that wait for an earlier one's answer: nothing more is read until they are answered. */
const MAX_PIPELINED = 16;
/** What was read before reading stopped may be as many as fit into a read; a connection with more is cut. */
const MAX_WAITING = 4000;
const STALL_GRACE_MS = 5000;

/** What node:http leaves open: requests of a connection one by one, answers to bytes that aren't HTTP, an end in time. */
export class HttpServer {
  readonly #server: Server;
  readonly #connections = new WeakMap<Socket, Connection>();
  /** Requests without an answer yet. */
  readonly #open = new Set<Exchange>();
  #on_idle: (() => void) | undefined;
  /** Whether answers end their connections. */
  #is_closing = false;

  constructor(answer: Answerer, { timeout_ms, keep_alive_ms }: ServerOptions) {
    this.#server = createServer({
      requestTimeout: timeout_ms,
      headersTimeout: timeout_ms,
      keepAliveTimeout: keep_alive_ms,
      connectionsCheckingInterval: 1000,
      requireHostHeader: false, // the app looks at it
    });
    // A client that doesn't take its answer would hold it for ever.
    this.#server.timeout = timeout_ms + STALL_GRACE_MS;
    // A client may end its side after its request, and still wants the answer. The types don't know of it.
    Object.assign(this.#server, { httpAllowHalfOpen: true });
    const accept = (request: IncomingMessage, response: ServerResponse, awaits_continue: boolean) => {
      const exchange = new Exchange(request, response, awaits_continue);
      this.#open.add(exchange);
      this.#connection(request.socket, answer).accept(exchange);
    };
    this.#server.on("request", (request, response) => accept(request, response, false));
    this.#server.on("checkExpectation", (request, response) => accept(request, response, true));
    this.#server.on("checkContinue", (request, response) => accept(request, response, true));
    this.#server.on("timeout", (socket) => this.#connection(socket, answer).cut_if_still());
    this.#server.on("clientError", (error: NodeJS.ErrnoException, socket) => {
      if (error.code === "ECONNRESET" || !socket.writable) socket.destroy();
      else this.#connection(socket as Socket, answer).break_off(refusal_of(error));
    });
  }

  /** @throws VitMsnError IO where the address can't be had. */
  listen(port: number, host: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", (cause: Error) => {
        const message = `The server can't listen at ${host}:${port}: ${cause.message}.`;
        reject(new VitMsnError("IO", message, { cause }));
      });
      this.#server.listen(port, host, resolve);
    });
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    const { address, family, port } = this.#server.address() as AddressInfo;
    return `http://${family === "IPv6" ? `[${address}]` : address}:${port}`;
  }

  /** From now on every answer is the last one of its connection, so that clients connect elsewhere. */
  end_connections(): void {
    this.#is_closing = true;
  }

  /** Takes no more connections, answers what was received, and cuts what isn't answered after `deadline_ms`. */
  async close(deadline_ms: number): Promise<void> {
    this.end_connections();
    this.#server.close();
    this.#server.closeIdleConnections();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, deadline_ms);
      this.#on_idle = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#open.size === 0) this.#on_idle();
    });
    this.#server.closeAllConnections();
  }

  #connection(socket: Socket, answer: Answerer): Connection {
    const known = this.#connections.get(socket);
    if (known !== undefined) return known;
    const connection = new Connection(socket, {
      answer,
      is_last: () => this.#is_closing || this.#server.keepAliveTimeout === 0,
      on_end: (exchange) => {
        this.#open.delete(exchange);
        if (this.#open.size === 0) this.#on_idle?.();
      },
    });
    this.#connections.set(socket, connection);
    return connection;
  }
}

interface ConnectionOptions {
  answer: Answerer;
  is_last(): boolean;
  /** Told of every exchange once, when it is answered or its client has gone. */
  on_end(exchange: Exchange): void;
}

/** Answers the requests of one connection one after the other, and reads no further than a few ahead. */
class Connection {
  readonly #socket: Socket;
  readonly #options: ConnectionOptions;
  #waiting: Exchange[] = [];
  #current: Exchange | undefined;
  #is_broken = false;
  /** What is said to bytes that aren't a request. */
  #last_words: HttpError | undefined;

  constructor(socket: Socket, options: ConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    // Node tells responses of pipelined requests nothing of their connection's end, or only newer versions do.
    socket.once("close", () => this.#leave());
  }

  accept(exchange: Exchange): void {
    if (this.#socket.destroyed) {
      this.#options.on_end(exchange);
      return;
    }
    this.#waiting.push(exchange);
    if (this.#waiting.length > MAX_WAITING) {
      this.#socket.destroy();
      return;
    }
    // Node resumes the socket behind each request: it is paused once what was read is gone through.
    if (this.#waiting.length === MAX_PIPELINED) {
      queueMicrotask(() => this.#pause());
      setImmediate(() => this.#pause());
    }
    if (this.#current === undefined) this.#work().catch((fault) => this.#socket.destroy(fault));
  }

  /** What comes now isn't HTTP. Requests before it are answered. */
  break_off(error: HttpError): void {
    if (this.#is_broken) return;
    this.#is_broken = true;
    const last = this.#waiting.at(-1) ?? this.#current;
    if (last !== undefined && !last.request.complete) {
      last.abort(error);
      return;
    }
    this.#last_words = error;
    if (this.#current === undefined) this.#say_last_words();
  }

  /** Nothing moved for long: whoever is answered at the moment has time, others haven't. */
  cut_if_still(): void {
    const { bytesRead } = this.#socket;
    // A process that stood still finds its timers due before what has arrived meanwhile.
    setImmediate(() => {
      const is_computing = this.#current !== undefined && this.#socket.writableLength === 0;
      if (this.#socket.bytesRead === bytesRead && !is_computing) this.#socket.destroy();
    });
  }

  #pause(): void {
    if (this.#waiting.length >= MAX_PIPELINED) this.#socket.pause();
  }

  async #work(): Promise<void> {
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      this.#current = next;
      if (this.#waiting.length === 0) this.#socket.resume();
      await this.#answer(next);
      // Other connections get their turn.
      await next_turn();
    }
    this.#current = undefined;
    this.#say_last_words();
  }

  async #answer(exchange: Exchange): Promise<void> {
    const { answer, is_last, on_end } = this.#options;
    const { status, headers, body } = await answer(exchange);
    const ends = this.#last_words === undefined && this.#waiting.length === 0 && is_last();
    await exchange.send(status, ends ? { ...headers, connection: "close" } : headers, body, () =>
      on_end(exchange),
    );
  }

  #say_last_words(): void {
    if (this.#last_words === undefined || !this.#socket.writable) return;
    const { status, code, message } = this.#last_words;
    const body = error_body(code, message);
    const head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nconnection: close\r\ncontent-type: application/json`;
    this.#socket.end(`${head}\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
    const cut = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    this.#socket.once("close", () => clearTimeout(cut));
  }

  #leave(): void {
    for (const exchange of this.#waiting) this.#options.on_end(exchange);
    this.#waiting = [];
    this.#current?.leave();
  }
}

export function error_body(code: string, message: string): string {
  return JSON.stringify({ error: { code, message } });
}

function refusal_of({ code }: NodeJS.ErrnoException): HttpError {
  switch (code) {
    case "ERR_HTTP_REQUEST_TIMEOUT":
      return new HttpError(408, "REQUEST_TIMEOUT", "The request didn't arrive in time.");
    case "HPE_HEADER_OVERFLOW":
      return new HttpError(431, "HEADERS_TOO_LARGE", "The request's headers are too large.");
    case "HPE_CHUNK_EXTENSIONS_OVERFLOW":
      return new HttpError(413, "PAYLOAD_TOO_LARGE", "The extensions of the body's chunks are too large.");
    default:
      return new HttpError(400, "BAD_REQUEST", "The request isn't valid HTTP/1.1.");
  }
}
