import type { Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { type Command, InvalidArgumentError, Option } from "commander";
import { version } from "../../../package.json";
import { type FunctionToApply, ViTMSNConfig, VitMsnError } from "../../index.ts";
import { seconds, whole_number } from "../batch/options.ts";
import { load_classifier } from "../classify.ts";
import { load_extractor } from "../embed.ts";
import { load_options, type ModelFlags, model_identity, with_model_options } from "../model_options.ts";
import { App, type Tasks } from "./app.ts";

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
}

const BYTES_IN_MB = 1_000_000;

function port_number(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535)
    throw new InvalidArgumentError("expected a port, from 0 (any free one) to 65535.");
  return Number(text);
}

/** `vit-msn serve`: the model behind an HTTP server, until it is stopped. */
export function add_serve(program: Command, signal: AbortSignal): void {
  with_model_options(program.command("serve"))
    .description("an HTTP server: POST /classify and /embed, GET /health and /metrics")
    .option("-p, --port <n>", "port to listen at; 0 takes a free one", port_number, 8080)
    .option("--host <address>", "address to listen at; 0.0.0.0 is every one this machine has", "127.0.0.1")
    .addOption(
      new Option("--only <task>", "serve one task; default: what the model's weights are for").choices([
        "classify",
        "embed",
      ]),
    )
    .option("-k, --top-k <n>", "classes in an answer, where ?top_k= doesn't say", whole_number, 5)
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
    .option("--max-batch <n>", "pictures of several requests computed together", whole_number, 8)
    .option("--max-wait <s>", "seconds that a picture waits for others while nothing is computed", seconds, 0)
    .option("--max-queue <n>", "requests accepted at a time; the others get 429", whole_number, 64)
    .option("--max-body <MB>", "megabytes of a picture's file; larger ones get 413", whole_number, 10)
    .option("--max-pixels <n>", "pixels of a picture", whole_number, 25_000_000)
    .option("--timeout <s>", "seconds until a request gets 504", seconds, 30)
    .option(
      "--allow-url-host <host>",
      'fetch pictures from this host where a request asks so, by JSON {"url"}; may be given again; default: none',
      (host: string, hosts: string[] = []) => [...hosts, host],
    )
    .addHelpText(
      "after",
      "\nA picture is a request's body (image/… or application/octet-stream) or the one file of a form. Errors are JSON:" +
        '\n{"error": {"code", "message"}}. SIGTERM and Ctrl-C finish what was accepted, then the server ends with 0.',
    )
    .action(async (flags: ServeFlags) => {
      process.exitCode = await serve(flags, signal);
    });
}

async function serve(flags: ServeFlags, signal: AbortSignal): Promise<number> {
  const tasks = await load_tasks(flags, signal);
  try {
    const app = new App(tasks, {
      max_batch: flags.maxBatch,
      max_wait_ms: flags.maxWait * 1000,
      max_queue: flags.maxQueue,
      max_bytes: flags.maxBody * BYTES_IN_MB,
      max_pixels: flags.maxPixels,
      timeout_ms: Math.max(1, flags.timeout * 1000),
      url_hosts: flags.allowUrlHost ?? [],
      top_k: flags.topK,
      about: { version, ...model_identity(flags), tasks: Object.keys(tasks) },
    });
    const server = make_server(app, flags);
    const answers = watch_answers(server);
    await listen(server, flags);
    if (!flags.quiet)
      console.error(`vit-msn: listening at ${address_of(server)}: ${Object.keys(tasks).join(", ")}.`);
    await until_aborted(signal);
    if (!flags.quiet) console.error("vit-msn: stopping; what was accepted is finished.");
    app.stop();
    await close(server, answers);
    return 0;
  } finally {
    for (const task of Object.values(tasks)) await task.dispose();
  }
}

/** A backbone's checkpoint has no classifier: one with random weights would answer anything. */
async function load_tasks(flags: ServeFlags, signal: AbortSignal): Promise<Tasks> {
  const only = flags.only ?? (await default_task(flags, signal));
  // The engine computes in a thread of its own, so that the server can answer meanwhile.
  const model = { ...flags, worker: true };
  const tasks: Tasks = {};
  try {
    if (only !== "embed") {
      // Every class, best first: requests ask for as many as they like.
      const options = {
        topK: Number.MAX_SAFE_INTEGER,
        functionToApply: flags.functionToApply,
        batchSize: flags.maxBatch,
      };
      tasks.classify = await load_classifier(model, options, signal);
    }
    if (only !== "classify")
      tasks.embed = await load_extractor(model, { pool: flags.pool, batchSize: flags.maxBatch }, signal);
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

function make_server(app: App, { timeout }: ServeFlags): Server {
  const timeout_ms = Math.max(1, Math.round(timeout * 1000));
  return createAdaptorServer({
    fetch: app.hono.fetch,
    overrideGlobalObjects: false,
    // Senders that dawdle are cut off by Node itself.
    serverOptions: {
      requestTimeout: timeout_ms,
      headersTimeout: timeout_ms,
      connectionsCheckingInterval: 1000,
    },
  }) as Server;
}

function listen(server: Server, { host, port }: ServeFlags): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: Error) => {
      const message = `The server can't listen at ${host}:${port}: ${error.message}.`;
      reject(new VitMsnError("IO", message, { cause: error }));
    });
    server.listen(port, host, resolve);
  });
}

function address_of(server: Server): string {
  const { address, family, port } = server.address() as AddressInfo;
  return `http://${family === "IPv6" ? `[${address}]` : address}:${port}`;
}

function until_aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** The answers that aren't sent to their end. */
function watch_answers(server: Server): ReadonlySet<ServerResponse> {
  const answers = new Set<ServerResponse>();
  server.on("request", (_request, response: ServerResponse) => {
    answers.add(response);
    response.once("close", () => answers.delete(response));
  });
  return answers;
}

const CLOSING_MS = 20;

/** Takes no more connections, and ends those there are once every request is answered. */
async function close(server: Server, answers: ReadonlySet<ServerResponse>): Promise<void> {
  server.close();
  server.closeIdleConnections();
  while (answers.size > 0) await new Promise((resolve) => setTimeout(resolve, CLOSING_MS));
  // What is left has sent no whole request, or was refused and is still sending.
  server.closeAllConnections();
}
