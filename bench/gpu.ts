/**
 * ViT-MSN on WebGPU in Chromium, float32, 224×224: beside onnxruntime-web's webgpu in the same browser, and sdpa beside
 * eager attention. On a machine with a GPU this measures it; without one, the software adapter that comes with Chromium.
 */
import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname } from "node:path";
import { parseArgs } from "node:util";
import { chromium, type Page } from "playwright";
import { find_chromium, launch_args } from "../scripts/chromium.mjs";
import type { TileChoice } from "../ts/engine/tiles.ts";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { to_onnx } from "./onnx/vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { median } from "./support/timing.ts";
import { chosen_sizes, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs gpu [OPTIONS]

  --size small|base|all   default small: on a software adapter base takes minutes
  --batch N               pictures in a forward; default 1 and 4
  --rounds N              counted forwards of each; default 3
  --software              Chromium's software adapter, even where there is a GPU
  --no-peer               leave onnxruntime-web out
  --attention             sdpa beside eager instead: batches 1, 2, 4, 8 at 224×224, then 448×448 and 896×896
  --image N               with --attention: one image size, batch 1
  --profile               also print each op's time
  --tune                  also measure the tiles of linear layers, print them, and tell a forward's time before and after
  --json                  print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string", default: "small" },
    batch: { type: "string" },
    rounds: { type: "string", default: "3" },
    image: { type: "string" },
    software: { type: "boolean", default: false },
    "no-peer": { type: "boolean", default: false },
    attention: { type: "boolean", default: false },
    profile: { type: "boolean", default: false },
    tune: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** Largest difference of the two runtimes' logits. */
const TOLERANCE = 1e-3;
const TYPES: Readonly<Record<string, string>> = {
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

/** Where the page's modules are. */
const IMPORTS = {
  "vit-msn": "/dist/index.web.js",
  "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
};
const PAGE = `<!doctype html><script type="importmap">${JSON.stringify({ imports: IMPORTS })}</script>`;

interface Measured {
  times: number[];
  logits: number[];
}
interface Ours extends Measured {
  adapter: { name: string; is_software: boolean };
  dispatches: number;
  table: string;
  untuned?: number[];
  tiles: readonly TileChoice[];
}

/** The repository's files, and ONNX written from the same random weights that the page makes. */
async function serve(): Promise<Server> {
  const onnx = new Map<string, Promise<Uint8Array>>();
  const server = createServer(async ({ url = "/" }, response) => {
    const path = url.slice(1).split("?")[0] as string;
    const body = await answer(path, onnx).catch(() => undefined);
    const type = path === "" ? "text/html" : (TYPES[extname(path)] ?? "application/octet-stream");
    response.writeHead(body === undefined ? 404 : 200, { "content-type": type });
    response.end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

async function answer(
  path: string,
  onnx: Map<string, Promise<Uint8Array>>,
): Promise<Uint8Array | string | undefined> {
  if (path === "") return PAGE;
  const size = /^onnx\/(\w+)$/.exec(path)?.[1] as Size | undefined;
  if (size === undefined) return /^(dist|bench|node_modules)\//.test(path) ? readFile(path) : undefined;
  const written = onnx.get(size) ?? write_onnx(size);
  onnx.set(size, written);
  return written;
}

async function write_onnx(size: Size): Promise<Uint8Array> {
  const model = await ViTMSNForImageClassification.from_config(SIZES[size], { device: "wasm" });
  const bytes = await to_onnx(model);
  await model.dispose();
  return bytes;
}

/** Calls a function of bench/gpu_page.js in the page. As text: the page imports it by itself. */
function measure<T>(page: Page, name: string, ...args: unknown[]): Promise<T> {
  const call = `import("/bench/gpu_page.js").then((m) => m.${name}(...${JSON.stringify(args)}))`;
  return page.evaluate(call) as Promise<T>;
}

interface Case {
  size: Size;
  batch: number;
  image: number;
}

function job({ size, batch, image }: Case) {
  return { config: SIZES[size], size, batch, image, rounds: Number(options.rounds), tune: options.tune };
}

async function beside_peer(page: Page, each: Case): Promise<Row> {
  const ours = await measure<Ours>(page, "ours", job(each), "sdpa");
  if (options.profile) console.log(`\n${each.size}, batch ${each.batch}: ${ours.table}`);
  if (options.tune) console.log(`\n${each.size}, batch ${each.batch}:\n${tile_table(ours.tiles)}`);
  const row = {
    model: each.size,
    batch: each.batch,
    adapter: describe(ours),
    dispatches: ours.dispatches,
    ...(ours.untuned && { "before tuning, ms": round(median(ours.untuned)) }),
    "vit-msn, ms": round(median(ours.times)),
  };
  if (options["no-peer"]) return row;
  const peer = await measure<Measured>(page, "onnxruntime", job(each));
  const difference = ours.logits.reduce(
    (most, value, i) => Math.max(most, Math.abs(value - (peer.logits[i] ?? Number.NaN))),
    0,
  );
  if (!(difference <= TOLERANCE)) throw new Error(`${each.size}: the logits differ by ${difference}.`);
  return {
    ...row,
    "onnxruntime-web, ms": round(median(peer.times)),
    ratio: round(median(ours.times) / median(peer.times), 3),
    "logits differ by": difference.toExponential(1),
  };
}

async function sdpa_beside_eager(page: Page, each: Case): Promise<Row> {
  const sdpa = await measure<Ours>(page, "ours", job(each), "sdpa");
  const eager = await measure<Ours>(page, "ours", job(each), "eager");
  return {
    model: each.size,
    batch: each.batch,
    image: each.image,
    adapter: describe(sdpa),
    "sdpa, ms": round(Math.min(...sdpa.times)),
    "eager, ms": round(Math.min(...eager.times)),
    "eager / sdpa": round(Math.min(...eager.times) / Math.min(...sdpa.times), 2),
  };
}

/** What each tile took, the one that is taken without a measurement first. */
function tile_table(tiles: readonly TileChoice[]): string {
  const lines = tiles.map(({ rows, inputs, outputs, dtype, tile, default_tile, ms }) => {
    const times = Object.entries(ms).map(([side, time]) => `${side}: ${time.toFixed(3)}`);
    return `| ${inputs} → ${outputs} | ${rows} | ${dtype} | ${default_tile} | ${tile} | ${times.join(", ")} |`;
  });
  return [
    "| layer | rows | dtype | by size | chosen | ms by tile |",
    "|---|---|---|---|---|---|",
    ...lines,
  ].join("\n");
}

const describe = ({ adapter }: Ours) => `${adapter.name}${adapter.is_software ? " (software)" : ""}`;

function cases(): Case[] {
  const sizes = chosen_sizes(options.size === "all" ? undefined : options.size);
  const batches = options.batch ? [Number(options.batch)] : options.attention ? [1, 2, 4, 8] : [1, 4];
  const at_224 = batches.map((batch) => ({ batch, image: 224 }));
  const images = options.image ? [Number(options.image)] : options.batch ? [] : [448, 896];
  const larger = images.map((image) => ({ batch: 1, image }));
  const chosen = options.attention ? (options.image ? larger : [...at_224, ...larger]) : at_224;
  return sizes.flatMap((size) => chosen.map((each) => ({ size, ...each })));
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const server = await serve();
  const software = new Set(["--use-webgpu-adapter=swiftshader"]);
  const args = launch_args.filter((arg) => options.software || !software.has(arg));
  const browser = await chromium.launch({ executablePath: find_chromium(), args });
  const rows: Row[] = [];
  try {
    for (const each of cases()) {
      // A page of its own for each: what one holds on the GPU must not slow the next.
      const page = await browser.newPage();
      await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
      rows.push(await (options.attention ? sdpa_beside_eager : beside_peer)(page, each));
      await page.close();
      console.error(JSON.stringify(rows.at(-1)));
    }
  } finally {
    await browser.close();
    server.close();
  }
  const title = options.attention
    ? "ViT-MSN on WebGPU in Chromium, float32: best forward by sdpa beside eager"
    : "ViT-MSN at 224×224 on WebGPU in Chromium, float32; medians of a forward";
  print(title, where, rows, options.json);
}

await main();
