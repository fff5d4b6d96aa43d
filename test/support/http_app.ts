import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { App, type AppOptions, type Tasks } from "../../ts/cli/serve/app.ts";
import { HttpServer } from "../../ts/cli/serve/http_server.ts";
import type { ImageFile } from "../../ts/cli/serve/image_file.ts";
import type { ServedTask } from "../../ts/cli/serve/served_task.ts";
import { RawImage } from "../../ts/index.ts";
import { root } from "./cli.ts";

// `vit-msn serve` in this process, over tasks that need no model, and clients that write raw bytes.

/** 28×28 pixels. */
export const BAG = await readFile(join(root, "models/fashion/pictures/8-bag.png"));

/** Decodes on this thread, and resizes nothing. */
export function read_here({ name, bytes }: ImageFile, max_pixels: number): Promise<RawImage> {
  return RawImage.read(new File([bytes as Uint8Array<ArrayBuffer>], name), { max_pixels });
}

/** Answers each image with its size. */
export const sizes: ServedTask = {
  state: "ok",
  engines: 1,
  prepare: read_here,
  compute: async (images) => images.map(({ width, height }) => ({ values: [width, height] })),
};

/** Answers each image with three classes. */
export const classes: ServedTask = {
  state: "ok",
  engines: 1,
  prepare: read_here,
  compute: async (images) =>
    images.map(() => ({ labels: ["Bag", "Boot", "Dress"], values: [0.5, 0.25, 0.25] })),
};

export interface RunningApp {
  app: App;
  server: HttpServer;
  port: number;
  url: string;
  log: string[];
}

export async function start_app(
  options: Partial<AppOptions & { keep_alive_ms: number; max_connections: number }> = {},
  tasks: Tasks = { classify: classes, embed: sizes },
): Promise<RunningApp> {
  const log: string[] = [];
  const app = new App(tasks, {
    max_batch: 4,
    max_wait_ms: 0,
    max_queue: 64,
    max_bytes: 100_000,
    max_pixels: 1_000_000,
    timeout_ms: 60_000,
    host: "127.0.0.1",
    allowed_hosts: [],
    cors: [],
    url_hosts: [],
    top_k: 2,
    max_memory: 100_000_000,
    preparers: 2,
    about: {},
    version: "1.2.3",
    log: (line) => log.push(line),
    ...options,
  });
  const { timeout_ms = 60_000, keep_alive_ms = 60_000, max_connections = 1000 } = options;
  const server = new HttpServer(app.answer, { timeout_ms, keep_alive_ms, max_connections });
  await server.listen(0, "127.0.0.1");
  return { app, server, port: server.port, url: server.url, log };
}

export interface RawAnswer {
  status: number;
  headers: Record<string, string>;
  body: string;
}

/** A connection that writes any bytes. */
export class RawClient {
  readonly socket: Socket;
  #received = Buffer.alloc(0);
  readonly #closed: Promise<unknown>;

  constructor(port: number) {
    this.socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    this.socket.on("error", () => {});
    this.socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
    });
    this.socket.on("end", () => this.socket.end());
    this.#closed = once(this.socket, "close");
  }

  write(...pieces: (string | Uint8Array)[]): this {
    this.socket.write(Buffer.concat(pieces.map((piece) => Buffer.from(piece as Uint8Array))));
    return this;
  }

  /** The first `count` answers, as soon as they are there. */
  async answers(count: number): Promise<RawAnswer[]> {
    for (;;) {
      const answers = parse_answers(this.#received);
      if (answers.length >= count) return answers;
      if (this.socket.closed) throw new Error(`${answers.length} answers instead of ${count}`);
      await Promise.race([once(this.socket, "data"), this.#closed]);
    }
  }

  /** All answers until the server closes the connection. */
  async all(): Promise<RawAnswer[]> {
    return parse_answers(Buffer.from(await this.text(), "latin1"));
  }

  /** All that arrives until the server closes the connection, one character per byte. */
  async text(): Promise<string> {
    await this.#closed;
    return this.#received.toString("latin1");
  }
}

/** Sends bytes, ends this side, and gives every answer. */
export function exchange(port: number, ...pieces: (string | Uint8Array)[]): Promise<RawAnswer[]> {
  const client = new RawClient(port).write(...pieces);
  client.socket.end();
  return client.all();
}

function parse_answers(bytes: Buffer): RawAnswer[] {
  const answers: RawAnswer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = bytes.indexOf("\r\n\r\n", at);
    if (end < 0) break;
    const [line = "", ...lines] = bytes.toString("latin1", at, end).split("\r\n");
    const [, status = ""] = /^HTTP\/1\.1 (\d{3}) /.exec(line) ?? [];
    if (status === "") throw new Error(`The answer begins with ${JSON.stringify(line)}.`);
    const headers = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.replace(/^[^:]*:\s*/, "")]),
    );
    const length = Number(headers["content-length"] ?? 0);
    const body = bytes.subarray(end + 4, end + 4 + length);
    if (body.length < length) break;
    answers.push({ status: Number(status), headers, body: body.toString() });
    at = end + 4 + length;
  }
  return answers;
}

/** Text of a request with a body of known length. */
export function request_of(
  target: string,
  body: string | Uint8Array,
  headers: Record<string, string> = { "content-type": "image/png" },
): Buffer {
  const bytes = Buffer.from(body as Uint8Array);
  const lines = Object.entries({ host: "localhost", "content-length": String(bytes.length), ...headers });
  const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join("");
  return Buffer.concat([Buffer.from(`POST ${target} HTTP/1.1\r\n${head}\r\n`), bytes]);
}

/** The body of a request that is sent in chunks. */
export function chunked(body: Uint8Array, size: number, extension = "", trailers = ""): Buffer {
  const pieces: Buffer[] = [];
  for (let at = 0; at < body.length; at += size) {
    const chunk = body.subarray(at, at + size);
    pieces.push(
      Buffer.from(`${chunk.length.toString(16)}${extension}\r\n`),
      Buffer.from(chunk),
      Buffer.from("\r\n"),
    );
  }
  return Buffer.concat([...pieces, Buffer.from(`0${extension}\r\n${trailers}\r\n`)]);
}
