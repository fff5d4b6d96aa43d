import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Command, InvalidArgumentError, Option } from "commander";
import { version } from "../../../package.json";
import { type FunctionToApply, ViTMSNConfig, VitMsnError } from "../../index.ts";
import type { Task } from "../batch/job.ts";
import { collect, positive_integer, seconds } from "../batch/options.ts";
import { function_to_apply_option, load_classifier } from "../classify.ts";
import { default_threads } from "../default_threads.ts";
import { load_extractor, pool_option } from "../embed.ts";
import { image_memory } from "../memory_budget.ts";
import { load_options, type ModelFlags, model_identity, with_model_options } from "../model_options.ts";
import { access_line, LOG_FORMATS, type LogFormat, message_line } from "./access_log.ts";
import type { Tasks } from "./app.ts";
import { LastingTask } from "./lasting_task.ts";
import { default_preparers, Preparers, start_prepare_worker } from "./preparers.ts";
import { EnginePool } from "./served_task.ts";

interface ServeFlags extends ModelFlags {
  host: string;
  port: number;
  only?: (typeof TASKS)[number];
  topK: number;
  functionToApply?: FunctionToApply;
  pool: "cls" | "mean";
  maxBatch: number;
  maxWait: number;
  maxQueue: number;
  maxBody: number;
  maxPixels: number;
  timeout: number;
  allowUrlHost?: string[];
  allowHost?: string[];
  cors?: string[];
  keepAlive: number;
  drain: number;
  engines: number;
  maxMemory?: number;
  maxConnections: number;
  log?: LogFormat;
}

const TASKS = ["classify", "embed"] as const;
const BYTES_IN_MB = 1_000_000;

function port_number(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535)
    throw new InvalidArgumentError("expected a port, from 0 (any free one) to 65535.");
  return Number(text);
}

/** An origin as browsers send it: no other could match. */
function collect_origin(text: string, origins: string[] = []): string[] {
  if (text !== "*" && !(URL.canParse(text) && new URL(text).origin === text))
    throw new InvalidArgumentError("expected an origin such as https://app.example, without a path, or *.");
  return [...origins, text];
}

/** `vit-msn serve`: serves a model over HTTP until it is stopped. */
export function add_serve(program: Command, signal: AbortSignal): void {
  const command = program
    .command("serve")
    .description(
      "serve a model over HTTP: POST /classify and /embed, GET /health, /ready, /metrics and /openapi.json",
    )
    .addHelpText(
      "after",
      `
A request holds an image as its body (image/… or application/octet-stream), or
one or several images as the files of a form or as base64 in JSON:
{"image": "…"}, {"inputs": "…"} or a list. Bodies may be compressed (Content-Encoding: gzip, deflate, br).
Errors are JSON: {"error": {"code", "message"}}. SIGTERM drains, finishes
accepted requests and exits with 0; Ctrl-C skips the drain.`,
    );
  with_access_options(with_limit_options(with_server_options(command)));
  with_model_options(command).action(async (flags: ServeFlags) => {
    process.exitCode = await serve(flags, signal);
  });
}

function with_server_options(command: Command): Command {
  return command
    .optionsGroup("Server:")
    .option("-p, --port <n>", "listen on this port; 0 picks a free one", port_number, 8080)
    .option(
      "--host <address>",
      "listen on this address; 0.0.0.0 is every address of this machine",
      "127.0.0.1",
    )
    .option(
      "--keep-alive <seconds>",
      "keep idle connections open this long; choose more than your proxy does",
      seconds,
      65,
    )
    .option(
      "--drain <seconds>",
      "after SIGTERM, accept requests this long while /ready returns 503",
      seconds,
      3,
    )
    .addOption(
      new Option(
        "--log <format>",
        "log each request to standard error as a line of text, or everything as JSON; default: no requests",
      ).choices(LOG_FORMATS),
    )
    .option(
      "--engines <n>",
      "load the model n times, to compute n batches at a time; each takes its memory and --num-threads, which is by" +
        " default its share of the cores",
      positive_integer,
      1,
    )
    .optionsGroup("Tasks:")
    .addOption(
      new Option("--only <task>", "serve one task; default: those that the model has weights for").choices(
        TASKS,
      ),
    )
    .option(
      "-k, --top-k <n>",
      "return the n likeliest classes if a request has no top_k",
      positive_integer,
      5,
    )
    .addOption(function_to_apply_option())
    .addOption(pool_option());
}

function with_limit_options(command: Command): Command {
  return command
    .optionsGroup("Limits:")
    .option("--max-batch <n>", "compute up to n images of several requests together", positive_integer, 8)
    .option(
      "--max-wait <seconds>",
      "let an image wait this long for others while nothing is being computed",
      seconds,
      0,
    )
    .option(
      "--max-memory <mb>",
      "keep the process under this many megabytes: requests whose images don't fit wait; default: what the loaded" +
        ` model takes and ${DEFAULT_REQUEST_MB}`,
      positive_integer,
    )
    .option(
      "--max-connections <n>",
      "keep up to n connections open; more are closed at once",
      positive_integer,
      1024,
    )
    .option("--max-queue <n>", "accept up to n requests at a time; more get 429", positive_integer, 64)
    .option(
      "--max-body <mb>",
      "accept bodies of up to this many megabytes, also when decompressed; larger ones get 413",
      positive_integer,
      10,
    )
    .option(
      "--max-pixels <n>",
      "accept images of up to n pixels; larger ones get 400",
      positive_integer,
      25_000_000,
    )
    .option(
      "--timeout <seconds>",
      "wait this long for a request's body (else 408) and for its answer (else 504)",
      seconds,
      30,
    );
}

function with_access_options(command: Command): Command {
  return command
    .optionsGroup("Access:")
    .option(
      "--cors <origin>",
      "let pages of this origin read answers, or of any if *; repeatable; default: none",
      collect_origin,
    )
    .option(
      "--allow-host <name>",
      "answer requests for this host name, too; repeatable; default: on a loopback address localhost and names" +
        " without a dot, else every name",
      collect,
    )
    .option(
      "--allow-url-host <host>",
      'fetch images from this host for JSON {"url"}; repeatable; default: none',
      collect,
    );
}

/** The longest time for accepted requests after the drain, whatever --timeout is: supervisors kill after about 30 s. */
const MAX_FINISH_MS = 20_000;

async function serve(flags: ServeFlags, signal: AbortSignal): Promise<number> {
  const log = (line: string) => process.stderr.write(`${message_line(line, flags.log)}\n`);
  const { tasks, dispose } = await load_tasks(flags, log, signal);
  try {
    // Imported here, since these modules start Node's fetch, whose address space other commands don't need.
    const [{ App }, { HttpServer }] = await Promise.all([import("./app.ts"), import("./http_server.ts")]);
    const timeout_ms = Math.max(1, Math.round(flags.timeout * 1000));
    const format = flags.log;
    const app = new App(tasks, {
      max_batch: flags.maxBatch,
      max_wait_ms: flags.maxWait * 1000,
      max_queue: flags.maxQueue,
      max_bytes: flags.maxBody * BYTES_IN_MB,
      max_pixels: flags.maxPixels,
      max_memory: request_memory(flags),
      preparers: default_preparers(),
      timeout_ms,
      host: flags.host,
      allowed_hosts: flags.allowHost ?? [],
      cors: flags.cors ?? [],
      url_hosts: flags.allowUrlHost ?? [],
      top_k: flags.topK,
      about: {
        version,
        ...model_identity({ ...flags, model: public_name(flags.model) }),
        tasks: Object.keys(tasks),
      },
      version,
      log,
      ...(format !== undefined && {
        on_access: (access) => process.stderr.write(`${access_line(access, format)}\n`),
      }),
    });
    const server = new HttpServer(app.answer, {
      timeout_ms,
      keep_alive_ms: Math.round(flags.keepAlive * 1000),
      max_connections: flags.maxConnections,
    });
    await server.listen(flags.port, flags.host);
    if (!flags.quiet) log(`listening at ${server.url}: ${Object.keys(tasks).join(", ")}.`);
    await until_aborted(signal);
    if (!flags.quiet) log("stopping after the accepted requests.");
    app.stop();
    server.end_connections();
    // No load balancer needs time if it is stopped by hand.
    if (signal.reason === "SIGTERM") await sleep(flags.drain * 1000);
    app.close();
    await server.close(Math.min(timeout_ms, MAX_FINISH_MS));
    return 0;
  } finally {
    end_after_last_wait(log);
    await dispose();
  }
}

/** Megabytes for requests if --max-memory doesn't say. */
const DEFAULT_REQUEST_MB = 512;
/** What a busy server needs besides images: garbage that isn't collected yet, and the engine's activations. */
const SLACK_MB = 100;
/** Less would let one image at a time wait for the other. */
const MIN_REQUEST_MB = 64;

/** Bytes for requests, of which the loaded model has left some. @throws VitMsnError INVALID_ARGUMENT if that is too little. */
function request_memory({ maxMemory, maxPixels }: ServeFlags): number {
  if (maxMemory === undefined) return DEFAULT_REQUEST_MB * BYTES_IN_MB;
  const loaded = Math.ceil(process.memoryUsage.rss() / BYTES_IN_MB) + SLACK_MB;
  const needed = Math.max(MIN_REQUEST_MB, Math.ceil(image_memory(maxPixels) / BYTES_IN_MB));
  if (maxMemory >= loaded + needed) return (maxMemory - loaded) * BYTES_IN_MB;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `--max-memory ${maxMemory} is too little: the loaded model takes ${loaded} MB, and an image of --max-pixels ${maxPixels} up to ` +
      `${needed} MB. Pass at least ${loaded + needed}, or less for --max-pixels.`,
    { details: { argument: "--max-memory" } },
  );
}

/** A decoder that never ends keeps the process alive, and process.exit would wait for it, too. */
function end_after_last_wait(log: (line: string) => void): void {
  const timer = setTimeout(() => {
    log("an image is still being decoded or computed; ending the process without waiting for it.");
    process.removeAllListeners("SIGTERM");
    process.kill(process.pid, "SIGTERM");
  }, LAST_WAIT_MS);
  timer.unref();
}

const LAST_WAIT_MS = 5000;

/** A model's repo id on the hub, or the last part of its path or URL: clients needn't know where it is stored. */
function public_name(model: string | undefined): string | undefined {
  if (model === undefined || /^[\w.-]+\/[\w.-]+$/.test(model)) return model;
  return basename(model.replace(/[?#].*$/, ""));
}

interface Loaded {
  tasks: Tasks;
  dispose(): Promise<void>;
}

/** A backbone's checkpoint has no classifier, so /classify isn't served by default: its results would be random. */
async function load_tasks(
  flags: ServeFlags,
  log: (line: string) => void,
  signal: AbortSignal,
): Promise<Loaded> {
  const only = flags.only ?? (await default_task(flags, signal));
  // The engine runs in a separate thread, so that the server stays responsive.
  const numThreads = flags.numThreads ?? default_threads(flags.engines);
  const model = { ...flags, numThreads, worker: true };
  const loaders: Partial<Record<keyof Tasks, () => Promise<Task>>> = {};
  if (only !== "embed") {
    // Every class, best first: each request chooses how many it gets.
    const options = {
      topK: Number.MAX_SAFE_INTEGER,
      functionToApply: flags.functionToApply,
      batchSize: flags.maxBatch,
    };
    loaders.classify = () => load_classifier(model, options, signal);
  }
  if (only !== "classify") {
    const options = { pool: flags.pool, batchSize: flags.maxBatch };
    loaders.embed = () => load_extractor(model, options, signal);
  }
  const engines: LastingTask[] = [];
  const settings: Record<string, unknown>[] = [];
  const tasks: Tasks = {};
  let preparers: Preparers | undefined;
  const dispose = async () => {
    await Promise.all([preparers?.dispose(), ...engines.map((engine) => engine.dispose())]);
  };
  try {
    for (const [name, load] of Object.entries(loaders)) {
      const first = await load();
      const processor = settings.push(first.settings) - 1;
      const pool = await load_engines(
        flags.engines,
        first,
        load,
        (line) => log(`/${name}: ${line}`),
        engines,
      );
      tasks[name as keyof Tasks] = new EnginePool(pool, (file, max_pixels) =>
        (preparers as Preparers).prepare({ file, max_pixels, processor }),
      );
    }
    preparers = new Preparers(default_preparers(), () => start_prepare_worker(settings));
    return { tasks, dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/** @param loaded gets each engine, to be disposed also if the next can't be loaded. */
async function load_engines(
  count: number,
  first: Task,
  load: () => Promise<Task>,
  log: (line: string) => void,
  loaded: LastingTask[],
): Promise<LastingTask[]> {
  const pool: LastingTask[] = [];
  for (let i = 0; i < count; i++) {
    const engine = new LastingTask(i === 0 ? first : await load(), { load, log });
    loaded.push(engine);
    pool.push(engine);
  }
  return pool;
}

async function default_task(flags: ServeFlags, signal: AbortSignal): Promise<"embed" | undefined> {
  if (flags.model === undefined) return undefined;
  const config = await ViTMSNConfig.from_pretrained(flags.model, load_options(flags, signal));
  const { architectures } = config.to_dict() as { architectures?: unknown };
  const classifies = Array.isArray(architectures) && architectures.includes("ViTMSNForImageClassification");
  return classifies ? undefined : "embed";
}

function until_aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
