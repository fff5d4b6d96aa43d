/**
 * A forward pass of vit-msn-small on one thread of a page, in every browser that this machine has. All browsers are open together,
 * and take turns round by round, so that the machine's other work disturbs them alike.
 */
import { readdir, readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { config_json, make_checkpoint, type Size } from "../test/real_size/weights.ts";
import {
  ENGINES,
  start_browser,
  type TestBrowser,
  type TestPage,
} from "../test/support/browsers/browsers.ts";
import { serve } from "../test/support/static_server.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { median } from "./support/timing.ts";
import { chosen_sizes } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs pages [OPTIONS]

  --size small|base   default small
  --rounds N          forward passes of each that are measured; default 15
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string", default: "small" },
    rounds: { type: "string", default: "15" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const DTYPES = ["float32", "int8"] as const;
type Dtype = (typeof DTYPES)[number];

/** Loads the model in each dtype and gives the level of its engine; later calls run one forward and give its milliseconds. */
const PROGRAM = `
import { env, Tensor, ViTMSNForImageClassification } from "/dist/index.web.js";
env.use_cache = false;
const models = {};
const noise = Float32Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i * 0.7));
const pixel_values = new Tensor("float32", noise, [1, 3, 224, 224]);
export async function load(dtype) {
  models[dtype] = await ViTMSNForImageClassification.from_pretrained(location.origin + "/model/", { dtype, device: "wasm" });
  return models[dtype].engine_info.level;
}
export async function forward(dtype) {
  const start = performance.now();
  await models[dtype].forward({ pixel_values });
  return performance.now() - start;
}
`;

/** Forwards before the measured ones: browsers compile in tiers. */
const WARM_UP = 5;

interface Measured {
  browser: TestBrowser;
  page: TestPage;
  dtype: Dtype;
  level: string;
  milliseconds: number[];
}

const call = <T>(page: TestPage, name: "load" | "forward", dtype: Dtype) =>
  page.run<T>(`return (await import("/program.js")).${name}(arg)`, dtype);

async function files(size: Size): Promise<Record<string, Uint8Array>> {
  const names = (await readdir("dist")).filter((name) => /\.(web\.js|wasm)$/.test(name));
  const dist = names.map(async (name) => [`dist/${name}`, await readFile(`dist/${name}`)] as const);
  const text = new TextEncoder();
  return {
    "index.html": text.encode("<!doctype html>"),
    "program.js": text.encode(PROGRAM),
    "model/config.json": text.encode(config_json(size)),
    "model/model.safetensors": make_checkpoint(size),
    ...Object.fromEntries(await Promise.all(dist)),
  };
}

async function open(browser: TestBrowser, url: string): Promise<Measured[]> {
  const page = await browser.open();
  await page.goto(url);
  const all: Measured[] = [];
  for (const dtype of DTYPES) {
    const level = await call<string>(page, "load", dtype);
    all.push({ browser, page, dtype, level, milliseconds: [] });
  }
  return all;
}

/** A row; the ratios are those of one round to the first browser's in the same round. */
function row_of({ browser, dtype, level, milliseconds }: Measured, first: Measured): Row {
  const ratios = milliseconds.map((value, i) => value / (first.milliseconds[i] as number));
  const best = Math.min(...milliseconds);
  return {
    dtype,
    browser: `${browser.engine} ${browser.version}`,
    engine: level,
    "median, ms": round(median(milliseconds)),
    "best, ms": round(best),
    [`ratio to ${first.browser.engine}`]: round(median(ratios), 2),
    "ratio of the best": round(best / Math.min(...first.milliseconds), 2),
  };
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const [size] = chosen_sizes(options.size) as [Size];
  const where = machine();
  const server = await serve(await files(size));
  const browsers = await Promise.all(ENGINES.map((engine) => start_browser(engine)));
  try {
    const all = (await Promise.all(browsers.map((browser) => open(browser, server.url)))).flat();
    for (let round = -WARM_UP; round < Number(options.rounds); round++) {
      for (const { page, dtype, milliseconds } of all) {
        const took = await call<number>(page, "forward", dtype);
        if (round >= 0) milliseconds.push(took);
      }
    }
    const rows = DTYPES.flatMap((dtype) => {
      const of_dtype = all.filter((measured) => measured.dtype === dtype);
      return of_dtype.map((measured) => row_of(measured, of_dtype[0] as Measured));
    });
    const title = `vit-msn-${size}, 224×224, one thread of a page, in turn; ratios are medians over ${options.rounds} rounds`;
    print(title, where, rows, options.json);
  } finally {
    await Promise.all(browsers.map((browser) => browser.close()));
    await server.close();
  }
}

await main();
