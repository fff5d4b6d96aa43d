import type { IncomingMessage } from "node:http";
import { RawImage } from "../../index.ts";
import { AllowedUrls } from "./allowed_urls.ts";
import { Batcher, type Computed } from "./batcher.ts";
import { decoded_body } from "./body.ts";
import type { Exchange } from "./exchange.ts";
import { FaultLog } from "./fault_log.ts";
import { read_form } from "./form.ts";
import { HttpError, invalid, to_http_error, unavailable } from "./http_error.ts";
import { type Answer, error_body } from "./http_server.ts";
import { quoted, read_json } from "./json_body.ts";
import type { ServedTask } from "./lasting_task.ts";
import { Metrics } from "./metrics.ts";
import { AllowedHosts, Cors } from "./origins.ts";
import { Slots } from "./slots.ts";

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
  log(line: string): void;
}

/** The tasks that the server computes; each is a route. */
export interface Tasks {
  classify?: ServedTask;
  embed?: ServedTask;
}

/** A request's image and options. */
interface ImageRequest {
  file: File;
  top_k?: unknown;
}

interface Route {
  method: "GET" | "POST";
  /** Known query parameters; undefined if any are ignored, such as those of monitors. */
  parameters?: readonly string[];
  answer(exchange: Exchange, query: URLSearchParams): Answer | Promise<Answer>;
}

const DECODED_BATCHES = 2;
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
  /** Decoded images are large: only those that are computed soon are decoded, the others wait as files. */
  readonly #decoded: Slots;
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
    this.#decoded = new Slots(DECODED_BATCHES * options.max_batch);
    if (tasks.classify !== undefined) this.#add_task("classify", tasks.classify, ["top_k"], this.#classes);
    if (tasks.embed !== undefined) this.#add_task("embed", tasks.embed, [], embedding);
    const health: Route = { method: "GET", answer: () => this.#health() };
    this.#routes.set("/health", health).set("/ready", health);
    this.#routes.set("/metrics", { method: "GET", answer: () => this.#metrics_text() });
  }

  /** From now on /health and /ready return 503, so that balancers send no more requests; those that come are answered. */
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
          const in_query = query.get("top_k") ?? undefined;
          if (in_query !== undefined) this.#top_k(in_query);
          const { file, top_k } = await this.#read_request(exchange);
          const count = this.#top_k(in_query ?? top_k);
          return json(200, to_json(await this.#compute(file, task, batcher, exchange.signal), count));
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

  /** A slot is held until its image is decoded, even if its client has gone. */
  #compute(file: File, task: ServedTask, batcher: Batcher, signal: AbortSignal): Promise<Computed> {
    const { max_pixels } = this.#options;
    return this.#decoded.use(signal, async () => {
      const image = await RawImage.read(file, { max_pixels, signal });
      return batcher.submit(await task.prepare(image, signal), signal);
    });
  }

  /** A request's image: its body, a part of its form, a string in its JSON, or what its URL leads to. */
  async #read_request(exchange: Exchange): Promise<ImageRequest> {
    const { max_bytes } = this.#options;
    const content_type = exchange.request.headers["content-type"] ?? "";
    const type = content_type.split(";", 1)[0]?.trim().toLowerCase() ?? "";
    const read = () => decoded_body(exchange, max_bytes);
    if (BYTES.has(type) || type.startsWith("image/")) return { file: image_file(await read()) };
    if (type === "multipart/form-data") {
      const { image, fields } = await read_form(await read(), content_type, exchange.signal);
      return { file: image_file(image), top_k: fields.get("top_k") };
    }
    if (type === "application/json" || type.endsWith("+json")) {
      const { image, top_k } = read_json(await read());
      if ("bytes" in image) return { file: image_file(image.bytes), top_k };
      const fetched = await this.#urls.fetch(image.url, exchange.signal);
      return { file: new File([fetched], IMAGE), top_k };
    }
    throw new HttpError(
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      "Send an image as the body (Content-Type image/… or application/octet-stream), as a file of a form " +
        '(multipart/form-data), or as JSON: {"image": "<base64>"}.',
    );
  }

  #top_k(given: unknown): number {
    if (given === undefined || given === null) return this.#options.top_k;
    const top_k = typeof given === "string" ? Number(given) : given;
    if (!Number.isSafeInteger(top_k) || (top_k as number) < 1)
      throw invalid(`top_k must be a positive integer, got ${quoted(String(given))}.`);
    return top_k as number;
  }

  readonly #classes = ({ labels = [], values }: Computed, top_k: number): object => ({
    results: labels.slice(0, top_k).map((label, i) => ({ label, score: values[i] })),
  });

  #health(): Answer {
    const states = Object.values(this.#tasks).map(({ state }: ServedTask) => state);
    const worst = states.find((state) => state === "dead") ?? states.find((state) => state !== "ok");
    const status = this.#is_stopping ? "stopping" : (worst ?? "ok");
    return json(status === "ok" ? 200 : 503, { status, ...this.#options.about });
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

const IMAGE = "The image";

/** A file whose name is what error messages call it. */
function image_file(bytes: Buffer): File {
  if (bytes.length === 0)
    throw new HttpError(400, "INVALID_IMAGE", "The request has no image: its body or file is empty.");
  return new File([bytes as Buffer<ArrayBuffer>], IMAGE);
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
