import { type Context, Hono, type Next } from "hono";
import { bodyLimit } from "hono/body-limit";
import { RawImage, VitMsnError } from "../../index.ts";
import type { Task } from "../batch/job.ts";
import { AllowedUrls, too_large } from "./allowed_urls.ts";
import { Batcher, type Computed } from "./batcher.ts";
import { HttpError, to_http_error } from "./http_error.ts";
import { Metrics } from "./metrics.ts";
import { Slots } from "./slots.ts";

export interface Limits {
  max_batch: number;
  max_wait_ms: number;
  /** Requests accepted and not answered. */
  max_queue: number;
  /** Of a request's body. */
  max_bytes: number;
  /** Of a decoded picture. */
  max_pixels: number;
  timeout_ms: number;
}

export interface AppOptions extends Limits {
  /** Hosts that pictures are fetched from, if a request names a URL. */
  url_hosts: readonly string[];
  /** Classes in an answer that doesn't ask for another number. */
  top_k: number;
  /** What is said of the model. */
  about: Readonly<Record<string, unknown>>;
}

/** What the server computes; each is a route. */
export interface Tasks {
  classify?: Task;
  embed?: Task;
}

const KEPT_DECODED_BATCHES = 2;
/** What a sender says of a body that it doesn't know; the last is curl's word for any. */
const BYTES: ReadonlySet<string> = new Set([
  "",
  "application/octet-stream",
  "application/x-www-form-urlencoded",
]);
const RETRY_AFTER_SECONDS = "1";

/** The HTTP server's routes over loaded models. */
export class App {
  readonly hono = new Hono();
  readonly #options: AppOptions;
  readonly #metrics = new Metrics();
  readonly #urls: AllowedUrls;
  /** Decoded pictures are large: there are only as many as can be computed soon, the others wait as files. */
  readonly #decoded: Slots;
  #in_progress = 0;
  #is_stopping = false;
  #is_dead = false;

  constructor(tasks: Tasks, options: AppOptions) {
    this.#options = options;
    this.#urls = new AllowedUrls(options.url_hosts, options.max_bytes);
    this.#decoded = new Slots(KEPT_DECODED_BATCHES * options.max_batch);
    const limited = bodyLimit({
      maxSize: options.max_bytes,
      onError: () => {
        throw too_large(options.max_bytes);
      },
    });
    this.hono.use((context, next) => this.#measure(context, next));
    for (const [name, task] of Object.entries(tasks) as [keyof Tasks, Task][]) {
      const batcher = this.#batcher(name, task);
      const answer = name === "classify" ? this.#classes : () => embedding;
      this.hono.post(
        `/${name}`,
        (context, next) => this.#admit(context, next),
        limited,
        (context) => this.#compute(context, batcher, answer),
      );
      this.hono.all(`/${name}`, () => {
        throw new HttpError(405, "METHOD_NOT_ALLOWED", `/${name} takes a picture by POST.`);
      });
    }
    this.hono.get("/health", (context) => this.#health(context));
    this.hono.get("/metrics", async (context) => {
      const { type, text } = await this.#metrics.text();
      return context.body(text, 200, { "content-type": type });
    });
    const routes = [...Object.keys(tasks).map((name) => `POST /${name}`), "GET /health", "GET /metrics"];
    this.hono.notFound(() => {
      throw new HttpError(404, "NOT_FOUND", `There is no such route; there are ${routes.join(", ")}.`);
    });
    this.hono.onError((error, context) => this.#refuse(error, context));
  }

  /** From now on requests are refused; those accepted are still answered. */
  stop(): void {
    this.#is_stopping = true;
  }

  #batcher(task: keyof Tasks, { compute }: Task): Batcher {
    return new Batcher(
      { compute },
      {
        ...this.#options,
        on_batch: (size, seconds) => {
          this.#metrics.batch_size.observe({ task }, size);
          this.#metrics.compute_seconds.observe({ task }, seconds);
        },
      },
    );
  }

  async #measure(context: Context, next: Next): Promise<void> {
    const end = this.#metrics.request_seconds.startTimer();
    await next();
    // Of paths that aren't routes there is no end.
    const route = context.res.status === 404 ? "other" : context.req.path;
    end({ route });
    this.#metrics.requests.inc({ route, status: context.res.status });
    if (this.#is_stopping) context.res.headers.set("connection", "close");
  }

  /** Before a byte of the body is read. */
  async #admit(_context: Context, next: Next): Promise<void> {
    if (this.#is_stopping) throw new HttpError(503, "STOPPING", "The server is about to stop.");
    if (this.#in_progress >= this.#options.max_queue) {
      throw new HttpError(
        429,
        "QUEUE_FULL",
        `${this.#in_progress} requests are waiting already; try again later.`,
      );
    }
    this.#metrics.in_progress.set(++this.#in_progress);
    try {
      await next();
    } finally {
      this.#metrics.in_progress.set(--this.#in_progress);
    }
  }

  async #compute(
    context: Context,
    batcher: Batcher,
    answer: (context: Context) => (row: Computed) => object,
  ): Promise<Response> {
    const to_json = answer(context);
    const { timeout_ms, max_pixels } = this.#options;
    const timeout = AbortSignal.timeout(timeout_ms);
    const signal = AbortSignal.any([timeout, context.req.raw.signal]);
    try {
      const blob = await until(signal, this.#picture(context, signal));
      const row = await this.#decoded.use(signal, async () =>
        batcher.submit(await RawImage.read(blob, { max_pixels, signal }), signal),
      );
      return context.json(to_json(row));
    } catch (error) {
      if (timeout.aborted)
        throw new HttpError(504, "TIMEOUT", `There was no answer within ${timeout_ms / 1000} s.`);
      throw error;
    }
  }

  readonly #classes = (context: Context) => {
    const text = context.req.query("top_k");
    const top_k = text === undefined ? this.#options.top_k : Number(text);
    if (!Number.isSafeInteger(top_k) || top_k < 1)
      throw new HttpError(400, "INVALID_ARGUMENT", `top_k must be a whole number from 1 on, got ${text}.`);
    return ({ labels = [], values }: Computed): object => ({
      results: labels.slice(0, top_k).map((label, i) => ({ label, score: values[i] })),
    });
  };

  /** A request's picture: its body, a part of its form, or what its URL leads to. */
  async #picture(context: Context, signal: AbortSignal): Promise<Blob> {
    const type = (context.req.header("content-type") ?? "").split(";", 1)[0]?.trim().toLowerCase() ?? "";
    if (BYTES.has(type) || type.startsWith("image/")) return named(await context.req.blob());
    if (type === "multipart/form-data") return named(await form_picture(context));
    if (type === "application/json" && this.#urls.allows_some)
      return named(await this.#urls.fetch(await json_url(context), signal));
    const urls = this.#urls.allows_some ? ', or JSON as {"url": "https://…"}' : "";
    throw new HttpError(
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      `Send a picture as the body (image/… or application/octet-stream) or as a file of a form${urls}.`,
    );
  }

  #health(context: Context): Response {
    const status = this.#is_dead ? "dead" : this.#is_stopping ? "stopping" : "ok";
    return context.json({ status, ...this.#options.about }, status === "ok" ? 200 : 503);
  }

  #refuse(error: unknown, context: Context): Response {
    const { status, code, message } = to_http_error(error);
    if (status === 500 && !context.req.raw.signal.aborted) console.error("vit-msn:", error);
    // An engine that died stays dead: whoever watches /health should start another server.
    if (error instanceof VitMsnError && error.code === "ENGINE_DEAD") this.#is_dead = true;
    if (status === 429 || status === 503) context.header("retry-after", RETRY_AFTER_SECONDS);
    // Whoever still sends a body that nobody reads shouldn't ask anything else behind it.
    if ([413, 429, 503, 504].includes(status)) context.header("connection", "close");
    return context.json({ error: { code, message } }, status);
  }
}

function embedding({ values }: Computed): object {
  return { embedding: Array.from(values) };
}

/** How errors call it. */
function named(blob: Blob): File {
  return new File([blob], "The picture");
}

async function form_picture(context: Context): Promise<File> {
  let form: FormData;
  try {
    form = await context.req.formData();
  } catch (error) {
    if (error instanceof HttpError) throw error;
    throw new HttpError(400, "INVALID_ARGUMENT", "The form can't be read as multipart/form-data.");
  }
  const files = [...form.values()].filter((value) => typeof value !== "string");
  const [file] = files;
  if (file === undefined || files.length > 1)
    throw new HttpError(
      400,
      "INVALID_ARGUMENT",
      `The form must have one file, a picture; it has ${files.length}.`,
    );
  return file;
}

async function json_url(context: Context): Promise<string> {
  const body: unknown = await context.req.json().catch((error) => {
    if (error instanceof HttpError) throw error;
    return undefined;
  });
  const url = typeof body === "object" && body !== null && "url" in body ? body.url : undefined;
  if (typeof url !== "string")
    throw new HttpError(400, "INVALID_ARGUMENT", 'The body must be JSON as {"url": "https://…"}.');
  return url;
}

/** The promise's value, or the signal's reason where that comes first. */
function until<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const on_abort = () => reject(signal.reason);
    if (signal.aborted) on_abort();
    signal.addEventListener("abort", on_abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", on_abort));
  });
}
