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
  /** The longest time for a request to arrive, and for a client to read its answer. */
  timeout_ms: number;
  /** How long a connection stays open between requests; 0 closes it after each answer. */
  keep_alive_ms: number;
  /** Connections that are open at a time; more are closed at once. */
  max_connections: number;
}

/** Computes the answer to an exchange; never rejects. */
export type Answerer = (exchange: Exchange) => Promise<Answer>;

export interface Answer {
  status: number;
  headers: Readonly<Record<string, string>>;
  body: string;
  /** The code of an error. */
  error?: string;
}

/** Requests of a connection that may wait for an earlier one's answer before reading is paused. */
const MAX_PIPELINED = 16;
/** More may have been read before the pause; a connection with more requests than this is cut. */
const MAX_WAITING = 4000;
const STALL_GRACE_MS = 5000;

/** Adds to node:http: one request of a connection at a time, answers to malformed requests, and a shutdown with a deadline. */
export class HttpServer {
  readonly #server: Server;
  readonly #connections = new WeakMap<Socket, Connection>();
  /** Requests that aren't answered yet. */
  readonly #open = new Set<Exchange>();
  #on_idle: (() => void) | undefined;
  /** Whether answers end their connections. */
  #is_closing = false;

  constructor(answer: Answerer, { timeout_ms, keep_alive_ms, max_connections }: ServerOptions) {
    this.#server = createServer({
      requestTimeout: timeout_ms,
      headersTimeout: timeout_ms,
      keepAliveTimeout: keep_alive_ms,
      connectionsCheckingInterval: 1000,
      requireHostHeader: false, // the app checks it
    });
    this.#server.maxConnections = max_connections;
    // A client that doesn't read its answer would occupy it forever.
    this.#server.timeout = timeout_ms + STALL_GRACE_MS;
    // A client may close its side after the request and still wants the answer. The types lack this option.
    Object.assign(this.#server, { httpAllowHalfOpen: true });
    const accept = (request: IncomingMessage, response: ServerResponse, awaits_continue: boolean) => {
      const exchange = new Exchange(request, response, awaits_continue);
      this.#open.add(exchange);
      this.#connection(request.socket, answer).accept(exchange);
    };
    this.#server.on("request", (request, response) => accept(request, response, false));
    this.#server.on("checkExpectation", (request, response) => accept(request, response, true));
    this.#server.on("checkContinue", (request, response) => accept(request, response, true));
    this.#server.on("timeout", (socket) => this.#connection(socket, answer).cut_if_stalled());
    this.#server.on("clientError", (error: NodeJS.ErrnoException, socket) => {
      if (error.code === "ECONNRESET" || !socket.writable) socket.destroy();
      else this.#connection(socket as Socket, answer).break_off(refusal_of(error));
    });
  }

  /** @throws VitMsnError IO if the address isn't available. */
  listen(port: number, host: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", (cause: Error) => {
        const message = `The server can't listen on ${host}:${port}: ${cause.message}. Choose another --host or --port.`;
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

  /** From now on every answer closes its connection, so that clients connect elsewhere. */
  end_connections(): void {
    this.#is_closing = true;
  }

  /** Stops accepting connections, answers received requests, and cuts connections after `deadline_ms`. */
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
  /** Called once for every exchange, when it is answered or its client has gone. */
  on_end(exchange: Exchange): void;
}

/** Answers the requests of a connection one after the other, and reads only a few ahead. */
class Connection {
  readonly #socket: Socket;
  readonly #options: ConnectionOptions;
  #waiting: Exchange[] = [];
  #current: Exchange | undefined;
  #is_broken = false;
  /** The answer to bytes that aren't a valid request, sent last. */
  #final_error: HttpError | undefined;

  constructor(socket: Socket, options: ConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    // Older versions of Node don't report the connection's end to responses of pipelined requests.
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
    // Node resumes the socket after each request, so it is paused once the data read so far is processed.
    if (this.#waiting.length === MAX_PIPELINED) {
      queueMicrotask(() => this.#pause());
      setImmediate(() => this.#pause());
    }
    if (this.#current === undefined) this.#work().catch((fault) => this.#socket.destroy(fault));
  }

  /** To be called when the client sends invalid HTTP. Earlier requests are still answered. */
  break_off(error: HttpError): void {
    if (this.#is_broken) return;
    this.#is_broken = true;
    const last = this.#waiting.at(-1) ?? this.#current;
    if (last !== undefined && !last.request.complete) {
      last.abort(error);
      return;
    }
    this.#final_error = error;
    if (this.#current === undefined) this.#send_final_error();
  }

  /** To be called when nothing was sent or received for long. Cuts the connection, unless an answer is being computed. */
  cut_if_stalled(): void {
    const { bytesRead } = this.#socket;
    // After a pause of the process, timers fire before data that arrived meanwhile is read.
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
      // Let other connections run.
      await next_turn();
    }
    this.#current = undefined;
    this.#send_final_error();
  }

  async #answer(exchange: Exchange): Promise<void> {
    const { answer, is_last, on_end } = this.#options;
    const { status, headers, body } = await answer(exchange);
    const ends = this.#final_error === undefined && this.#waiting.length === 0 && is_last();
    await exchange.send(status, ends ? { ...headers, connection: "close" } : headers, body, () =>
      on_end(exchange),
    );
  }

  #send_final_error(): void {
    if (this.#final_error === undefined || !this.#socket.writable) return;
    const { status, code, message } = this.#final_error;
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
