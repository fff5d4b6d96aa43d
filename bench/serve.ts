/**
 * Load on `vit-msn serve`: clients that each ask again as soon as they are answered, over real connections, with the server
 * in a separate process. Latencies are what a client sees, decoding included.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import sharp from "sharp";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { SIZES, smooth_image } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs serve [OPTIONS]

  --seconds N    how long each load lasts; default 5
  --clients LIST how many clients ask at a time; default 1,4,16
  --batches LIST the server's --max-batch; default 1,8
  --model NAME   small (random weights, 224×224) or bundled (28×28); default both
  --threads N    of the engine; default 1
  --variants LIST further options of the server, each variant measured in turn, such as ",--engines 2,--dtype int8"
  --python PATH  a Python with the packages of serve_fastapi.py, which is measured next to small
  --rounds N     how often everything is measured in turn; default 1
  --json         print JSON`;

const { values: options } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    clients: { type: "string", default: "1,4,16" },
    batches: { type: "string", default: "1,8" },
    model: { type: "string" },
    threads: { type: "string", default: "1" },
    variants: { type: "string", default: "" },
    python: { type: "string" },
    rounds: { type: "string", default: "1" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

interface Served {
  url: string;
  process: ChildProcess;
}

async function serve(model: readonly string[], max_batch: number, variant: string): Promise<Served> {
  const limits = ["--max-batch", String(max_batch), "--max-queue", "256", "--timeout", "600"];
  const threads = ["--num-threads", options.threads];
  const further = variant === "" ? [] : variant.split(" ");
  const args = [
    "dist/cli.js",
    "serve",
    "--port",
    "0",
    "--only",
    "embed",
    ...limits,
    ...threads,
    ...model,
    ...further,
  ];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  const url = await new Promise<string>((resolve, reject) => {
    let printed = "";
    child.stderr.on("data", (text: Buffer) => {
      printed += text.toString();
      const listening = /listening at (http:\S+?):? embed/.exec(printed.replace(": embed", " embed"));
      if (listening) resolve(listening[1] as string);
    });
    child.once("exit", () => reject(new Error(printed)));
  });
  return { url, process: child };
}

const FASTAPI_PORT = 18_765;

/** serve_fastapi.py, once it answers. */
async function serve_fastapi(python: string, model: string, image: Uint8Array<ArrayBuffer>): Promise<Served> {
  const args = ["bench/serve_fastapi.py", model, String(FASTAPI_PORT)];
  const child = spawn(python, args, { stdio: ["ignore", "ignore", "inherit"] });
  const url = `http://127.0.0.1:${FASTAPI_PORT}`;
  while (child.exitCode === null) {
    const answer = await post(url, image).catch(() => undefined);
    if (answer?.ok) return { url, process: child };
    await sleep(500);
  }
  throw new Error("The FastAPI server has ended.");
}

function post(url: string, body: Uint8Array<ArrayBuffer>): Promise<Response> {
  const headers = { "content-type": "application/octet-stream" };
  return fetch(`${url}/embed`, { method: "POST", body, headers });
}

interface Usage {
  cpu_ms: number;
  peak_mb: number;
}

/** CPU time so far and peak memory of a process, where the system reports them. */
function usage(pid: number): Usage | undefined {
  try {
    const [, fields = ""] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ");
    const [user, system] = fields.split(" ").slice(11, 13).map(Number) as [number, number];
    const peak = /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    // In ticks of 10 ms.
    return { cpu_ms: 10 * (user + system), peak_mb: Number(peak) / 1000 };
  } catch {
    return undefined;
  }
}

/** Milliseconds of every request that started within the time. */
async function load(
  url: string,
  body: Uint8Array<ArrayBuffer>,
  clients: number,
  ms: number,
): Promise<number[]> {
  const times: number[] = [];
  const end = performance.now() + ms;
  const client = async () => {
    for (let now = performance.now(); now < end; now = performance.now()) {
      const response = await post(url, body);
      await response.arrayBuffer();
      if (response.status !== 200) throw new Error(`The server answered ${response.status}.`);
      times.push(performance.now() - now);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  return times;
}

/** [batches, images] computed so far. */
async function batches(url: string): Promise<[number, number]> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const value = (name: string) =>
    Number(new RegExp(`^${name}\\{task="embed"\\} (.*)$`, "m").exec(text)?.[1] ?? 0);
  return [value("vit_msn_batch_size_count"), value("vit_msn_batch_size_sum")];
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] as number;
}

/** Loads a server with each number of clients. */
async function measure(
  name: string,
  server: Served,
  image: Uint8Array<ArrayBuffer>,
  has_metrics: boolean,
): Promise<Row[]> {
  const rows: Row[] = [];
  const ms = Number(options.seconds) * 1000;
  const pid = server.process.pid as number;
  try {
    await load(server.url, image, 4, Math.min(ms, 2000));
    for (const clients of options.clients.split(",").map(Number)) {
      const before = has_metrics ? await batches(server.url) : undefined;
      const used = usage(pid);
      const started = performance.now();
      const times = (await load(server.url, image, clients, ms)).sort((a, b) => a - b);
      const seconds = (performance.now() - started) / 1000;
      const now = usage(pid);
      const after = before && (await batches(server.url));
      rows.push({
        server: name,
        clients,
        "answers/s": round(times.length / seconds),
        "p50, ms": round(quantile(times, 0.5)),
        "p95, ms": round(quantile(times, 0.95)),
        "p99, ms": round(quantile(times, 0.99)),
        "CPU ms an answer": used && now ? round((now.cpu_ms - used.cpu_ms) / times.length) : "",
        "peak MB": now ? round(now.peak_mb) : "",
        "images per batch": before && after ? round((after[1] - before[1]) / (after[0] - before[0])) : "",
      });
    }
  } finally {
    server.process.kill("SIGTERM");
  }
  return rows;
}

/** Every variant of the server. */
async function measure_ours(
  name: string,
  model: readonly string[],
  image: Uint8Array<ArrayBuffer>,
): Promise<Row[]> {
  const rows: Row[] = [];
  for (const max_batch of options.batches.split(",").map(Number))
    for (const variant of options.variants.split(",")) {
      const label = [name, `max batch ${max_batch}`, ...(variant === "" ? [] : [variant])].join(", ");
      rows.push(...(await measure(label, await serve(model, max_batch, variant), image, true)));
    }
  return rows;
}

/** A model as large as vit-msn-small, with random weights. */
async function save_small(folder: string): Promise<void> {
  const model = await ViTMSNModel.from_config(SIZES.small);
  await model.save_pretrained(folder);
  await new ViTImageProcessor().save_pretrained(folder);
  await model.dispose();
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  const folder = mkdtempSync(join(tmpdir(), "vit-msn-bench-"));
  const encode = async (width: number, height: number) =>
    new Uint8Array(
      await sharp(smooth_image(width, height), { raw: { width, height, channels: 3 } })
        .jpeg({ quality: 90 })
        .toBuffer(),
    );
  try {
    if (options.model !== "bundled") await save_small(folder);
    for (let round = 0; round < Number(options.rounds); round++) {
      if (options.model !== "small")
        rows.push(...(await measure_ours("bundled, 28×28", [], await encode(28, 28))));
      if (options.model === "bundled") continue;
      const image = await encode(640, 480);
      rows.push(...(await measure_ours("small, 640×480", ["--model", folder], image)));
      if (options.python === undefined) continue;
      const fastapi = await serve_fastapi(options.python, folder, image);
      rows.push(...(await measure("FastAPI, 640×480", fastapi, image, false)));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  print("POST /embed: clients that ask again as soon as they are answered", where, rows, options.json);
}

await main();
