/**
 * Load on `vit-msn serve`: clients that each ask again as soon as they are answered, over real connections, with the server
 * in a separate process. Latencies are what a client sees, decoding included.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
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
  --json         print JSON`;

const { values: options } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    clients: { type: "string", default: "1,4,16" },
    batches: { type: "string", default: "1,8" },
    model: { type: "string" },
    threads: { type: "string", default: "1" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

interface Served {
  url: string;
  process: ChildProcess;
}

async function serve(model: readonly string[], max_batch: number): Promise<Served> {
  const limits = ["--max-batch", String(max_batch), "--max-queue", "256", "--num-threads", options.threads];
  const args = ["dist/cli.js", "serve", "--port", "0", "--only", "embed", ...limits, ...model];
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
      const response = await fetch(`${url}/embed`, { method: "POST", body });
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

async function measure(
  name: string,
  model: readonly string[],
  image: Uint8Array<ArrayBuffer>,
): Promise<Row[]> {
  const rows: Row[] = [];
  const ms = Number(options.seconds) * 1000;
  for (const max_batch of options.batches.split(",").map(Number)) {
    const server = await serve(model, max_batch);
    try {
      await load(server.url, image, 4, Math.min(ms, 2000));
      for (const clients of options.clients.split(",").map(Number)) {
        const before = await batches(server.url);
        const started = performance.now();
        const times = (await load(server.url, image, clients, ms)).sort((a, b) => a - b);
        const seconds = (performance.now() - started) / 1000;
        const after = await batches(server.url);
        rows.push({
          model: name,
          "max batch": max_batch,
          clients,
          "answers/s": round(times.length / seconds),
          "p50, ms": round(quantile(times, 0.5)),
          "p95, ms": round(quantile(times, 0.95)),
          "p99, ms": round(quantile(times, 0.99)),
          "images per batch": round((after[1] - before[1]) / (after[0] - before[0])),
        });
      }
    } finally {
      server.process.kill("SIGTERM");
    }
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
    if (options.model !== "small") rows.push(...(await measure("bundled, 28×28", [], await encode(28, 28))));
    if (options.model !== "bundled") {
      await save_small(folder);
      rows.push(...(await measure("small, 640×480 JPEG", ["--model", folder], await encode(640, 480))));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  print("POST /embed: clients that ask again as soon as they are answered", where, rows, options.json);
}

await main();
