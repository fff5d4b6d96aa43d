import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Command, InvalidArgumentError, Option } from "commander";
import { version } from "../../../package.json";
import { type FunctionToApply, ViTMSNConfig } from "../../index.ts";
import { seconds, whole_number } from "../batch/options.ts";
import { load_classifier } from "../classify.ts";
import { load_extractor } from "../embed.ts";
import { load_options, type ModelFlags, model_identity, with_model_options } from "../model_options.ts";
import { say } from "../terminal.ts";
import { LastingTask } from "./lasting_task.ts";

interface ServeFlags extends ModelFlags {
  host: string;
  port: number;
  only?: "classify" | "embed";
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
}

const BYTES_IN_MB = 1_000_000;

function port_number(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535)
    throw new InvalidArgumentError("expected a port, from 0 (any free one) to 65535.");
  return Number(text);
}

/** As browsers send it: nothing else would ever match. */
function collect_origin(text: string, origins: string[] = []): string[] {
  if (text !== "*" && !(URL.canParse(text) && new URL(text).origin === text))
    throw new InvalidArgumentError("expected an origin as https://app.example, without a path, or *.");
  return [...origins, text];
}

/** For an option that may be given again. */
function collect(value: string, values: string[] = []): string[] {
  return [...values, value];
}

/** `vit-msn serve`: the model behind an HTTP server, until it is stopped. */
export function add_serve(program: Command, signal: AbortSignal): void {
  with_model_options(program.command("serve"))
    .description("serve a model over HTTP: POST /classify and /embed, GET /health, /ready and /metrics")
    .option("-p, --port <n>", "port to listen at; 0 takes a free one", port_number, 8080)
    .option("--host <address>", "address to listen at; 0.0.0.0 is every address of this machine", "127.0.0.1")
    .addOption(
      new Option("--only <task>", "serve one task; default: what the model's weights are for").choices([
        "classify",
        "embed",
      ]),
    )
    .option("-k, --top-k <n>", "classes in an answer to a request without top_k", whole_number, 5)
    .addOption(
      new Option(
        "--function-to-apply <name>",
        "how logits become scores; default: by the model's problem type",
      ).choices(["softmax", "sigmoid", "none"]),
    )
    .addOption(
      new Option("--pool <name>", "embeddings: CLS token, or mean of the patch tokens")
        .choices(["cls", "mean"])
        .default("cls"),
    )
    .option("--max-batch <n>", "images of several requests computed together", whole_number, 8)
    .option("--max-wait <s>", "seconds that an image waits for others while nothing is computed", seconds, 0)
    .option("--max-queue <n>", "requests accepted at a time; more get 429", whole_number, 64)
    .option(
      "--max-body <MB>",
      "megabytes of a body, also when decompressed; larger ones get 413",
      whole_number,
      10,
    )
    .option("--max-pixels <n>", "pixels of an image; larger ones get 400", whole_number, 25_000_000)
    .option(
      "--timeout <s>",
      "seconds for a request's body to arrive (else 408) and be answered (else 504)",
      seconds,
      30,
    )
    .option(
      "--keep-alive <s>",
      "seconds that a connection stays open between requests; longer than a proxy's",
      seconds,
      65,
    )
    .option(
      "--drain <s>",
      "seconds after SIGTERM in which /ready and /health are 503 and requests are still taken",
      seconds,
      3,
    )
    .option(
      "--cors <origin>",
      "let pages of this origin read answers, * those of any; may be given again; default: none",
      collect_origin,
    )
    .option(
      "--allow-host <name>",
      "answer requests for this host name besides; may be given again; default: at a loopback address localhost" +
        " and names without a dot, else every name",
      collect,
    )
    .option(
      "--allow-url-host <host>",
      'fetch images from this host for JSON {"url"}; may be given again; default: none',
      collect,
    )
    .addHelpText(
      "after",
      "\nAn image is a request's body (image/… or application/octet-stream), the one file of a form, or base64 in JSON:" +
        '\n{"image": "…"} or {"inputs": "…"}. Bodies may be compressed (Content-Encoding: gzip, deflate, br). Errors are' +
        '\nJSON: {"error": {"code", "message"}}. SIGTERM drains, finishes what was accepted and exits with 0; Ctrl-C does' +
        "\nso without the drain.",
    )
    .action(async (flags: ServeFlags) => {
      process.exitCode = await serve(flags, signal);
    });
}

/** How long accepted requests may take after the drain, whatever --timeout is: supervisors kill after 30 s or so. */
const MAX_FINISH_MS = 20_000;

async function serve(flags: ServeFlags, signal: AbortSignal): Promise<number> {
  const tasks = await load_tasks(flags, signal);
  try {
    // Imported here, since the server's library starts Node's fetch, whose address space other commands can do without.
    const [{ App }, { HttpServer }] = await Promise.all([import("./app.ts"), import("./http_server.ts")]);
    const timeout_ms = Math.max(1, Math.round(flags.timeout * 1000));
    const app = new App(tasks, {
      max_batch: flags.maxBatch,
      max_wait_ms: flags.maxWait * 1000,
      max_queue: flags.maxQueue,
      max_bytes: flags.maxBody * BYTES_IN_MB,
      max_pixels: flags.maxPixels,
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
      log,
    });
    const server = new HttpServer(app.answer, {
      timeout_ms,
      keep_alive_ms: Math.round(flags.keepAlive * 1000),
    });
    await server.listen(flags.port, flags.host);
    if (!flags.quiet) log(`listening at ${server.url}: ${Object.keys(tasks).join(", ")}.`);
    await until_aborted(signal);
    if (!flags.quiet) log("stopping; what was accepted is finished.");
    app.stop();
    server.end_connections();
    // Who stops it by hand waits for no load balancer.
    if (signal.reason === "SIGTERM") await sleep(flags.drain * 1000);
    app.close();
    await server.close(Math.min(timeout_ms, MAX_FINISH_MS));
    return 0;
  } finally {
    end_at_last();
    for (const task of Object.values(tasks)) await task.dispose();
  }
}

function log(line: string): void {
  say(line);
}

/** A decoder that doesn't come to its end keeps the process alive, and process.exit waits for it, too. */
function end_at_last(): void {
  const timer = setTimeout(() => {
    log("something is still being decoded or computed; the process ends without waiting for it.");
    process.removeAllListeners("SIGTERM");
    process.kill(process.pid, "SIGTERM");
  }, LAST_WAIT_MS);
  timer.unref();
}

const LAST_WAIT_MS = 5000;

/** A hub's name for a model, or the last part of a path or URL: where it lies is nobody's business. */
function public_name(model: string | undefined): string | undefined {
  if (model === undefined || /^[\w.-]+\/[\w.-]+$/.test(model)) return model;
  return basename(model.replace(/[?#].*$/, ""));
}

type LastingTasks = Partial<Record<"classify" | "embed", LastingTask>>;

/** A backbone's checkpoint has no classifier: one with random weights would answer anything. */
async function load_tasks(flags: ServeFlags, signal: AbortSignal): Promise<LastingTasks> {
  const only = flags.only ?? (await default_task(flags, signal));
  // The engine computes in a thread of its own, so that the server can answer meanwhile.
  const model = { ...flags, worker: true };
  const tasks: LastingTasks = {};
  try {
    if (only !== "embed") {
      // Every class, best first: requests ask for as many as they like.
      const options = {
        topK: Number.MAX_SAFE_INTEGER,
        functionToApply: flags.functionToApply,
        batchSize: flags.maxBatch,
      };
      tasks.classify = await LastingTask.load(
        () => load_classifier(model, options, signal),
        (line) => log(`/classify: ${line}`),
      );
    }
    if (only !== "classify") {
      const options = { pool: flags.pool, batchSize: flags.maxBatch };
      tasks.embed = await LastingTask.load(
        () => load_extractor(model, options, signal),
        (line) => log(`/embed: ${line}`),
      );
    }
    return tasks;
  } catch (error) {
    await tasks.classify?.dispose();
    throw error;
  }
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
