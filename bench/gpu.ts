/**
 * ViT-MSN on WebGPU at 224×224: in Chromium compared with onnxruntime-web's webgpu in the same browser, and sdpa with eager
 * attention; or in Deno or Node. On a machine with a GPU this measures it; `--software` takes the runtime's software adapter.
 */

import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright";
import { find_lavapipe } from "../scripts/browsers.mjs";
import { find_chromium, find_swiftshader, launch_args } from "../scripts/chromium.mjs";
import { deno, own_node } from "../test/support/runtimes.ts";
import { WEIGHT_DTYPES, type WeightDtype } from "../ts/dtypes.ts";
import type { TileChoice } from "../ts/engine/engine.ts";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { to_onnx } from "./onnx/vit_msn.ts";
import { machine, print, type Row, round, table } from "./support/report.ts";
import { median } from "./support/timing.ts";
import { chosen_sizes, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs gpu [OPTIONS]

  --runtime NAME          chromium (default), deno or node
  --size small|base|all   default small: on a software adapter base takes minutes
  --dtype NAME            float32 (default), float16, bfloat16 or int8; the peer has float32 alone
  --batch N               images in a forward pass; default 1 and 4
  --rounds N              measured forward passes of each, after a first one; default 3
  --software              the software adapter, even where there is a GPU: SwiftShader, in Deno Mesa's lavapipe
  --headed                Chromium with a window, where it finds no GPU without one
  --no-peer               skip onnxruntime-web, which runs only in Chromium
  --attention             compare sdpa with eager instead: batches 1, 2, 4, 8 at 224×224, then 448×448 and 896×896
  --image N               with --attention: one image size, batch 1
  --profile               also print each op's time
  --tune                  also measure the tiles of linear layers, and print them and a forward pass's time before and after
  --json                  print JSON`;

const { values: options } = parseArgs({
  options: {
    runtime: { type: "string", default: "chromium" },
    size: { type: "string", default: "small" },
    dtype: { type: "string", default: "float32" },
    batch: { type: "string" },
    rounds: { type: "string", default: "3" },
    image: { type: "string" },
    software: { type: "boolean", default: false },
    headed: { type: "boolean", default: false },
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
  /** The first forward pass after the model was loaded. */
  first: number;
  times: number[];
  logits: number[];
}
interface Ours extends Measured {
  second: number;
  adapter: { name: string; is_software: boolean };
  dispatches?: number;
  table?: string;
  untuned?: number[];
  tiles: readonly TileChoice[];
}

/** Calls a function of bench/gpu_page.js somewhere. */
type Measure = <T>(name: "ours" | "onnxruntime", ...args: readonly unknown[]) => Promise<T>;

/** Where forwards are measured. */
interface Place {
  /** With its version. */
  name: string;
  has_peer: boolean;
  /** Measures in a separate page or process: what one case holds on the GPU must not slow the next. */
  run(body: (measure: Measure) => Promise<Row>): Promise<Row>;
  close(): Promise<void>;
}

async function in_chromium(): Promise<Place> {
  const server = await serve();
  const software = new Set(["--use-webgpu-adapter=swiftshader"]);
  const args = launch_args.filter((arg) => options.software || !software.has(arg));
  const executablePath = find_chromium();
  const browser = await chromium.launch({ executablePath, args, headless: !options.headed });
  return {
    name: `Chromium ${browser.version()}`,
    has_peer: true,
    run: async (body) => {
      const page = await browser.newPage();
      await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
      // As text: the page imports it by itself.
      const row = await body((name, ...args) =>
        page.evaluate(`import("/bench/gpu_page.js").then((m) => m.${name}(...${JSON.stringify(args)}))`),
      );
      await page.close();
      return row;
    },
    close: async () => {
      await browser.close();
      server.close();
    },
  };
}

async function in_process(name: "deno" | "node"): Promise<Place> {
  const runtime = name === "deno" ? await deno("--unstable-webgpu") : await own_node();
  const driver = name === "deno" ? find_lavapipe() : find_swiftshader();
  if (options.software && driver === undefined) {
    const missing =
      name === "deno" ? "Mesa's lavapipe isn't installed" : "there is no Chromium with SwiftShader";
    throw new Error(`No software adapter for ${runtime.name}: ${missing}.`);
  }
  const variables = options.software ? { VK_ICD_FILENAMES: driver } : {};
  const program = resolve("bench/gpu_program.mjs");
  return {
    name: `${runtime.name} ${runtime.version}`,
    has_peer: false,
    run: (body) =>
      body(async (name, ...args) =>
        // No limit: base takes minutes on software.
        JSON.parse(await runtime.run(program, [name, JSON.stringify(args)], resolve("."), variables, 0)),
      ),
    close: async () => {},
  };
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

interface Case {
  size: Size;
  batch: number;
  image: number;
}

function job({ size, batch, image }: Case) {
  const { dtype, tune } = options;
  const rounds = Number(options.rounds);
  // Counting dispatches takes two forward passes more.
  const profile = options.profile || !options.attention;
  return { config: SIZES[size], size, dtype, batch, image, rounds, tune, profile };
}

/** Forwards of ours; prints what was asked for besides. */
async function measure_ours(measure: Measure, each: Case, attention: "sdpa" | "eager"): Promise<Ours> {
  const ours = await measure<Ours>("ours", job(each), attention);
  const { size, batch, image } = each;
  const title = `${size}, batch ${batch}, ${image}×${image}, ${attention}`;
  // The result alone goes to standard output where a program reads it.
  const show = options.json ? console.error : console.log;
  if (options.profile) show(`\n${title}: ${ours.table}`);
  if (options.tune) show(`\n${title}, tiles:\n${tile_table(ours.tiles)}`);
  if (ours.adapter.is_software && !options.software) {
    console.error(
      `${ours.adapter.name} is software: no GPU was found. See chrome://gpu, try --headed or another --runtime.`,
    );
  }
  return ours;
}

const worst = (a: readonly number[], b: readonly number[]) =>
  a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] ?? Number.NaN))), 0);

async function beside_peer(measure: Measure, each: Case, has_peer: boolean): Promise<Row> {
  const ours = await measure_ours(measure, each, "sdpa");
  const row = {
    model: each.size,
    dtype: options.dtype,
    batch: each.batch,
    adapter: describe(ours),
    dispatches: ours.dispatches ?? 0,
    "first, ms": round(ours.first),
    "second, ms": round(ours.second),
    ...(ours.untuned && { "before tuning, ms": round(median(ours.untuned)) }),
    "vit-msn, ms": round(median(ours.times)),
  };
  if (!has_peer) return row;
  const peer = await measure<Measured>("onnxruntime", job(each));
  const difference = worst(ours.logits, peer.logits);
  if (!(difference <= TOLERANCE)) throw new Error(`${each.size}: the logits differ by ${difference}.`);
  return {
    ...row,
    "onnxruntime-web's first, ms": round(peer.first),
    "onnxruntime-web, ms": round(median(peer.times)),
    ratio: round(median(ours.times) / median(peer.times), 3),
    "logits differ by": difference.toExponential(1),
  };
}

async function sdpa_beside_eager(measure: Measure, each: Case): Promise<Row> {
  const sdpa = await measure_ours(measure, each, "sdpa");
  const eager = await measure_ours(measure, each, "eager");
  const [sdpa_ms, eager_ms] = [Math.min(...sdpa.times), Math.min(...eager.times)];
  return {
    model: each.size,
    dtype: options.dtype,
    batch: each.batch,
    image: each.image,
    adapter: describe(sdpa),
    "sdpa, ms": round(sdpa_ms),
    "eager, ms": round(eager_ms),
    "eager / sdpa": round(eager_ms / sdpa_ms, 2),
    "logits differ by": worst(sdpa.logits, eager.logits).toExponential(1),
  };
}

/** What each tile took: the default one compared with the fastest. */
function tile_table(tiles: readonly TileChoice[]): string {
  const rows = tiles.map(({ op, rows, inputs, outputs, dtype, tile, default_tile, ms }) => {
    const times = Object.entries(ms).map(([side, time]) => `${side}: ${time.toFixed(3)}`);
    return {
      layer: op === "attention" ? `attention, ${outputs} heads of ${inputs}` : `${inputs} → ${outputs}`,
      rows,
      dtype,
      "by size": default_tile,
      chosen: tile,
      "ms by tile": times.join(", ") || "software has one",
    };
  });
  return table(rows);
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

async function open_place(): Promise<Place> {
  const { runtime } = options;
  if (runtime === "chromium") return in_chromium();
  if (runtime === "deno" || runtime === "node") return in_process(runtime);
  throw new Error("--runtime is one of chromium, deno and node.");
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  if (!WEIGHT_DTYPES.includes(options.dtype as WeightDtype))
    throw new Error(`--dtype is one of ${WEIGHT_DTYPES.join(", ")}.`);
  const where = machine();
  const place = await open_place();
  const has_peer = place.has_peer && !options["no-peer"] && options.dtype === "float32";
  const rows: Row[] = [];
  try {
    for (const each of cases()) {
      rows.push(
        await place.run((measure) =>
          options.attention ? sdpa_beside_eager(measure, each) : beside_peer(measure, each, has_peer),
        ),
      );
      console.error(JSON.stringify(rows.at(-1)));
    }
  } finally {
    await place.close();
  }
  const title = options.attention
    ? `ViT-MSN on WebGPU in ${place.name}: best forward by sdpa beside eager`
    : `ViT-MSN at 224×224 on WebGPU in ${place.name}: the first forward after loading, the one after it, medians of later ones`;
  print(title, where, rows, options.json);
}

await main();
