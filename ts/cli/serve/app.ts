import type { IncomingMessage } from "node:http";
import { read_header } from "../../image/index.ts";
import { decoding_bytes, MemoryBudget } from "../memory_budget.ts";
import type { Access } from "./access_log.ts";
import { AllowedUrls } from "./allowed_urls.ts";
import { Batcher, type Computed } from "./batcher.ts";
import { decoded_body } from "./body.ts";
import type { Exchange } from "./exchange.ts";
import { FaultLog } from "./fault_log.ts";
import { read_form } from "./form.ts";
import { HttpError, invalid, to_http_error, unavailable } from "./http_error.ts";
import { type Answer, error_body } from "./http_server.ts";
import type { ImageFile } from "./image_file.ts";
import { type JsonImage, parse_top_k, quoted, read_json } from "./json_body.ts";
import { Lanes, lane_of } from "./lanes.ts";
import type { EngineState } from "./lasting_task.ts";
import { Metrics } from "./metrics.ts";
import { openapi_document } from "./openapi.ts";
import { AllowedHosts, Cors } from "./origins.ts";
import type { ServedTask } from "./served_task.ts";

export interface Limits {
  max_batch: number;
  max_wait_ms: number;
  /** The largest number of requests that are accepted and not answered. */
  max_queue: number;
  /** Limit for a request's body, and for the image's file. */
  max_bytes: number;
  /** Limit for a decoded image. */
  max_pixels: number;
  timeout_ms: number;
  /** Bytes of memory for requests: their bodies, and images while they are decoded and wait. */
  max_memory: number;
  /** The number of images that are decoded and resized at a time. */
  preparers: number;
}

export interface AppOptions extends Limits {
  /** The address that the server listens on. */
  host: string;
  /** Further host names of the server. */
  allowed_hosts: readonly string[];
  /** Origins whose pages may read answers. */
  cors: readonly string[];
  /** Hosts that images may be fetched from, if a request names a URL. */
  url_hosts: readonly string[];
  /** Classes in an answer to a request without top_k. */
  top_k: number;
  /** Facts about the model for /health. */
  about: Readonly<Record<string, unknown>>;
  /** The package's version. */
  version: string;
  log(line: string): void;
  /** Called for each answered request. */
  on_access?(access: Access): void;
}

/** The tasks that the server computes; each is a route. */
export interface Tasks {
  classify?: ServedTask;
  embed?: ServedTask;
}

/** A request's images and options. */
interface ImageRequest {
  files: ImageFile[];
  /** Whether the answer is a list. */
  is_list: boolean;
  top_k: number | undefined;
}

interface Route {
  method: "GET" | "POST";
  /** Known query parameters; undefined if any are ignored, such as those of monitors. */
  parameters?: readonly string[];
  answer(exchange: Exchange, query: URLSearchParams): Answer | Promise<Answer>;
}

/** The share of the memory that is for bodies; the rest is for images. */
const SHARE_OF_BODIES = 0.25;
/** The share of bodies' memory that is for small ones, so that large ones can't hold them up. */
const SHARE_OF_SMALL_BODIES = 0.25;
const SMALL_BODY = 1_000_000;
/** A body, and what is extracted from it. */
const COPIES_OF_BODY = 2;
/** Content types that say nothing about the body; the last is curl's default. */
const BYTES: ReadonlySet<string> = new Set([
  "",
  "application/octet-stream",
  "binary/octet-stream",
  "application/x-www-form-urlencoded",
]);

/** The HTTP server's routes over loaded models. */
export class App {
  readonly #options: AppOptions;
  readonly #tasks: Tasks;
  readonly #routes = new Map<string, Route>();
  readonly #metrics = new Metrics();
  readonly #hosts: AllowedHosts;
  readonly #cors: Cors;
  readonly #urls: AllowedUrls;
  readonly #faults: FaultLog;
  readonly #lanes: Lanes;
  readonly #small_bodies: MemoryBudget;
  readonly #large_bodies: MemoryBudget;
  #in_progress = 0;
  #is_stopping = false;
  #is_closed = false;

  constructor(tasks: Tasks, options: AppOptions) {
    this.#tasks = tasks;
    this.#options = options;
    this.#hosts = new AllowedHosts(options.host, options.allowed_hosts);
    this.#cors = new Cors(options.cors);
    this.#urls = new AllowedUrls(options.url_hosts, options.max_bytes);
    this.#faults = new FaultLog(options.log);
    const bodies = SHARE_OF_BODIES * options.max_memory;
    this.#small_bodies = new MemoryBudget(SHARE_OF_SMALL_BODIES * bodies);
    this.#large_bodies = new MemoryBudget((1 - SHARE_OF_SMALL_BODIES) * bodies);
    this.#lanes = new Lanes({ workers: options.preparers, memory: options.max_memory - bodies });
    if (tasks.classify !== undefined) this.#add_task("classify", tasks.classify, ["top_k"], this.#classes);
    if (tasks.embed !== undefined) this.#add_task("embed", tasks.embed, [], embedding);
    this.#routes.set("/health", { method: "GET", answer: () => this.#health() });
    this.#routes.set("/ready", { method: "GET", answer: () => this.#readiness() });
    this.#routes.set("/metrics", { method: "GET", answer: () => this.#metrics_text() });
    const names = Object.keys(tasks) as (keyof Tasks)[];
    const openapi = json(200, openapi_document({ ...options, tasks: names }));
    this.#routes.set("/openapi.json", { method: "GET", answer: () => openapi });
  }

  /** From now on /ready returns 503, so that balancers send no more requests; those that come are answered. */
  stop(): void {
    this.#is_stopping = true;
  }

  /** From now on new requests are refused. */
  close(): void {
    this.#is_closed = true;
  }

  /** Answers any request. */
  readonly answer = async (exchange: Exchange): Promise<Answer> => {
    const { request } = exchange;
    const end = this.#metrics.request_seconds.startTimer();
    const started = performance.now();
    const { path, query } = target(request.url ?? "/");
    let answer: Answer;
    try {
      check_protocol(request);
      this.#hosts.check(request);
      answer = await this.#route(exchange, path, query);
    } catch (error) {
      answer = this.#refusal(error, `${request.method} ${path}`, exchange.signal);
    }
    // Other paths share a label, since clients can make up any number of them.
    const route = this.#routes.has(path) ? path : "other";
    end({ route });
    this.#metrics.requests.inc({ route, status: answer.status });
    this.#options.on_access?.({
      client: request.socket.remoteAddress,
      method: request.method,
      path,
      status: answer.status,
      ms: Math.round(1000 * (performance.now() - started)) / 1000,
      bytes_in: exchange.bytes_read,
      bytes_out: Buffer.byteLength(answer.body),
      images: exchange.images,
      error: answer.error,
    });
    return { ...answer, headers: { ...answer.headers, ...this.#cors.headers(request) } };
  };

  #add_task(
    name: keyof Tasks,
    task: ServedTask,
    parameters: readonly string[],
    to_json: (row: Computed, top_k: number) => object,
  ): void {
    const batcher = new Batcher(task, {
      ...this.#options,
      on_batch: (size, seconds) => {
        this.#metrics.batch_size.observe({ task: name }, size);
        this.#metrics.compute_seconds.observe({ task: name }, seconds);
      },
    });
    this.#routes.set(`/${name}`, {
      method: "POST",
      parameters,
      answer: (exchange, query) =>
        this.#admit(exchange, async () => {
          const in_query = parse_top_k(query.get("top_k"));
          return this.#with_request(exchange, async ({ files, is_list, top_k }) => {
            exchange.images = files.length;
            const count = in_query ?? top_k ?? this.#options.top_k;
            const rows = await all(files.map((file) => this.#compute(file, task, batcher, exchange.signal)));
            const answers = rows.map((row) => to_json(row, count));
            return json(200, is_list ? { images: answers } : (answers[0] as object));
          });
        }),
    });
  }

  #route(exchange: Exchange, path: string, query: URLSearchParams): Answer | Promise<Answer> {
    const { request } = exchange;
    const route = this.#routes.get(path);
    if (route === undefined) {
      const routes = [...this.#routes].map(([path, { method }]) => `${method} ${path}`);
      throw new HttpError(404, "NOT_FOUND", `There is no such route. The routes are ${routes.join(", ")}.`);
    }
    const methods = route.method === "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    if (request.method === "OPTIONS")
      return {
        status: 204,
        headers: { allow: methods, ...this.#cors.preflight(request, methods) },
        body: "",
      };
    if (!methods.split(", ").includes(request.method ?? ""))
      throw new HttpError(
        405,
        "METHOD_NOT_ALLOWED",
        route.method === "POST" ? `${path} requires POST, with an image.` : `${path} requires GET.`,
        { allow: methods },
      );
    const { parameters } = route;
    const unknown = parameters && [...query.keys()].find((name) => !parameters.includes(name));
    if (unknown !== undefined)
      throw invalid(
        `${path} has no query parameter ${quoted(unknown)}; it takes ${parameters?.join(", ") || "none"}.`,
      );
    return route.answer(exchange, query);
  }

  /** Runs `body` for a request, within the limits of requests in progress and time. */
  async #admit(exchange: Exchange, body: () => Promise<Answer>): Promise<Answer> {
    const { max_queue, timeout_ms } = this.#options;
    if (this.#is_closed) throw unavailable("STOPPING", "The server is stopping.");
    if (this.#in_progress >= max_queue)
      throw unavailable("QUEUE_FULL", `${max_queue} requests are already in progress; try again later.`, 429);
    const timer = setTimeout(() => exchange.abort(timed_out(exchange.request, timeout_ms)), timeout_ms);
    this.#metrics.in_progress.set(++this.#in_progress);
    try {
      return await until(exchange.signal, body());
    } finally {
      clearTimeout(timer);
      this.#metrics.in_progress.set(--this.#in_progress);
    }
  }

  /** Its memory is held until the image is decoded, even if its client has gone. */
  async #compute(
    file: ImageFile,
    task: ServedTask,
    batcher: Batcher,
    signal: AbortSignal,
  ): Promise<Computed> {
    const { max_pixels } = this.#options;
    const bytes = decoding_bytes(await read_header(file.bytes, file.name, max_pixels), max_pixels);
    const place = await this.#lanes.enter(bytes, signal);
    try {
      const image = await task.prepare(file, max_pixels);
      place.prepared(image.data.byteLength);
      return await batcher.submit(image, lane_of(bytes), signal);
    } finally {
      place.leave();
    }
  }

  /** Runs `body` with a request's images; holds the memory of the request's body meanwhile. */
  async #with_request<T>(exchange: Exchange, body: (request: ImageRequest) => Promise<T>): Promise<T> {
    const { headers } = exchange.request;
    const length = headers["content-encoding"] === undefined ? headers["content-length"] : undefined;
    const releases = [await this.#take_body(Number(length ?? Number.NaN), exchange.signal)];
    try {
      const { images, is_list, top_k } = await this.#read_request(exchange);
      const files: ImageFile[] = [];
      for (const [i, image] of images.entries()) {
        const name = images.length === 1 ? "The image" : `Image ${i + 1}`;
        if ("url" in image && i === 0) {
          // The body was only this: no request may wait for memory while it holds some.
          releases.pop()?.();
          releases.push(await this.#take_body(images.length * this.#options.max_bytes, exchange.signal));
        }
        files.push(image_file(await this.#bytes_of(image, exchange.signal), name));
      }
      return await body({ files, is_list, top_k });
    } finally {
      for (const release of releases) release();
    }
  }

  #take_body(length: number, signal: AbortSignal): Promise<() => void> {
    const { max_bytes } = this.#options;
    const bodies = length <= SMALL_BODY ? this.#small_bodies : this.#large_bodies;
    return bodies.take(COPIES_OF_BODY * (Number.isFinite(length) ? length : max_bytes), signal);
  }

  async #bytes_of(image: JsonImage, signal: AbortSignal): Promise<Uint8Array> {
    if ("bytes" in image) return image.bytes;
    return new Uint8Array(await (await this.#urls.fetch(image.url, signal)).arrayBuffer());
  }

  /** A request's images: its body, the files of its form, or strings in its JSON. */
  async #read_request(
    exchange: Exchange,
  ): Promise<{ images: readonly JsonImage[]; is_list: boolean; top_k?: number | undefined }> {
    const { max_bytes } = this.#options;
    const content_type = exchange.request.headers["content-type"] ?? "";
    const type = content_type.split(";", 1)[0]?.trim().toLowerCase() ?? "";
    const read = () => decoded_body(exchange, max_bytes);
    if (BYTES.has(type) || type.startsWith("image/"))
      return { images: [{ bytes: await read() }], is_list: false };
    if (type === "multipart/form-data") {
      const { images, fields } = await read_form(await read(), content_type, exchange.signal);
      const is_list = images.length > 1;
      return { images: images.map((bytes) => ({ bytes })), is_list, top_k: parse_top_k(fields.get("top_k")) };
    }
    if (type === "application/json" || type.endsWith("+json")) return read_json(await read());
    throw new HttpError(
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      "Send an image as the body (Content-Type image/… or application/octet-stream), as files of a form " +
        '(multipart/form-data), or as JSON: {"image": "<base64>"}.',
    );
  }

  readonly #classes = ({ labels = [], values }: Computed, top_k: number): object => ({
    results: labels.slice(0, top_k).map((label, i) => ({ label, score: values[i] })),
  });

  /** Whether the process works: what restarting it wouldn't change is no reason to say no. */
  #health(): Answer {
    const status = this.#status();
    return json(status === "dead" ? 503 : 200, { status, ...this.#options.about });
  }

  /** Whether it should get requests. */
  #readiness(): Answer {
    const status = this.#status();
    return json(status === "ok" ? 200 : 503, { status, ...this.#options.about });
  }

  #status(): EngineState | "stopping" {
    const states = Object.values(this.#tasks).map(({ state }: ServedTask) => state);
    const worst = (["dead", "loading"] as const).find((state) => states.includes(state));
    return worst === "dead" || !this.#is_stopping ? (worst ?? "ok") : "stopping";
  }

  async #metrics_text(): Promise<Answer> {
    const { type, text } = await this.#metrics.text();
    return { status: 200, headers: { "content-type": type }, body: text };
  }

  #refusal(error: unknown, what: string, signal: AbortSignal): Answer {
    const refusal = signal.aborted ? (signal.reason as HttpError) : to_http_error(error);
    if (refusal !== undefined) return refused(refusal);
    this.#faults.add(what, error);
    return refused(new HttpError(500, "INTERNAL", "The server failed to compute this; see its log."));
  }
}

function image_file(bytes: Uint8Array, name: string): ImageFile {
  if (bytes.length === 0)
    throw new HttpError(400, "INVALID_IMAGE", `${name} is empty: the request's body or file has no bytes.`);
  return { name, bytes };
}

/** The values of all, or the first error, once all have settled: none is left behind. */
async function all<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  const settled = await Promise.allSettled(promises);
  return settled.map((each) => {
    if (each.status === "rejected") throw each.reason;
    return each.value;
  });
}

function embedding({ values }: Computed): object {
  return { embedding: Array.from(values) };
}

function json(status: number, value: object): Answer {
  return { status, headers: { "content-type": "application/json" }, body: JSON.stringify(value) };
}

function refused({ status, code, message, headers }: HttpError): Answer {
  return {
    status,
    headers: { "content-type": "application/json", ...headers },
    body: error_body(code, message),
    error: code,
  };
}

/** Path and query of a request's target, which may be a whole URL. */
function target(url: string): { path: string; query: URLSearchParams } {
  const local = url.replace(/^https?:\/\/[^/?]*/i, "");
  const at = local.indexOf("?");
  const path = at < 0 ? local : local.slice(0, at);
  let end = path.length;
  while (end > 1 && path[end - 1] === "/") end--;
  return { path: path.slice(0, end), query: new URLSearchParams(at < 0 ? "" : local.slice(at)) };
}

/** Checks that HTTP requires and Node leaves to its users. */
function check_protocol({ httpVersion, headers }: IncomingMessage): void {
  if (httpVersion === "1.1" && headers.host === undefined)
    throw new HttpError(400, "BAD_REQUEST", "An HTTP/1.1 request must have a Host header.");
  if (headers.expect !== undefined && headers.expect.toLowerCase() !== "100-continue")
    throw new HttpError(417, "EXPECTATION_FAILED", "The Expect header must be 100-continue.");
}

function timed_out({ complete }: IncomingMessage, timeout_ms: number): HttpError {
  const seconds = timeout_ms / 1000;
  return complete
    ? new HttpError(504, "TIMEOUT", `The answer took longer than ${seconds} s.`)
    : new HttpError(408, "REQUEST_TIMEOUT", `The body didn't arrive within ${seconds} s.`);
}

/** The promise's value, or a rejection with the signal's reason if it fires first. */
function until<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const on_abort = () => reject(signal.reason);
    if (signal.aborted) on_abort();
    signal.addEventListener("abort", on_abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", on_abort));
  });
}
