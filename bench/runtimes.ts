/**
 * This package compared with transformers.js, each as its users install it, in every runtime: what is downloaded or installed, when
 * a model is ready, and when the first image is classified. float32, one thread, the model's files on this machine.
 */
import {
  cp,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, extname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { ENGINES, type Engine, start_browser, with_page } from "../test/support/browsers/browsers.ts";
import { bun, deno, newest_node, own_node, type Runtime } from "../test/support/runtimes.ts";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { to_onnx } from "./onnx/vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs runtimes [OPTIONS]

  --peers-dir DIR     the folder whose node_modules has @huggingface/transformers; default this one
  --size small|base   default small
  --only NAME         one runtime: node, newest, deno, bun, chromium, firefox or webkit
  --rounds N          runs of each, of which the fastest by its first answer counts; default 2
  --no-peer           leave transformers.js out
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    "peers-dir": { type: "string", default: "." },
    size: { type: "string", default: "small" },
    only: { type: "string" },
    rounds: { type: "string", default: "2" },
    "no-peer": { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const PEER = "@huggingface/transformers";
const IMAGE = resolve("test/fixtures/images/landscape.jpg");
const PROCESSOR = {
  image_processor_type: "ViTImageProcessor",
  do_resize: true,
  size: { height: 224, width: 224 },
  resample: 2,
  do_rescale: true,
  rescale_factor: 1 / 255,
  do_normalize: true,
  image_mean: [0.485, 0.456, 0.406],
  image_std: [0.229, 0.224, 0.225],
};
/** The two resize images by different filters and run other kernels; random weights make scores nearly alike. */
const TOLERANCE = 0.02;

const TYPES: Readonly<Record<string, string>> = {
  "": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

interface Measured {
  ready_ms: number;
  first_ms: number;
  later_ms: number;
  best: { label: string; score: number };
  /** Bytes of JavaScript and WebAssembly downloaded. */
  code_bytes?: number;
}
type Program = "vit_msn" | "transformers_js";
type Run = (program: Program) => Promise<Measured>;

/** A project with both packages, and the model in both forms. */
async function make_project(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "vit-msn-runtimes-"));
  await cp("bench/runtimes", folder, { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "private": true, "type": "module" }');
  const modules = join(folder, "node_modules");
  await mkdir(join(modules, dirname(PEER)), { recursive: true });
  await symlink(resolve("."), join(modules, "vit-msn"), "junction");
  if (!options["no-peer"]) {
    await symlink(resolve(options["peers-dir"], "node_modules", PEER), join(modules, PEER), "junction");
  }
  const model = await ViTMSNForImageClassification.from_config(SIZES[options.size as Size], {
    device: "wasm",
  });
  const model_folder = join(folder, "models", options.size);
  await model.save_pretrained(model_folder);
  await writeFile(join(model_folder, "preprocessor_config.json"), JSON.stringify(PROCESSOR));
  await mkdir(join(model_folder, "onnx"));
  await writeFile(join(model_folder, "onnx/model.onnx"), await to_onnx(model));
  await model.dispose();
  return folder;
}

function in_process(runtime: Pick<Runtime, "run">, folder: string): Run {
  const args = [join(folder, "models"), options.size, IMAGE];
  return async (program) => JSON.parse(await runtime.run(`${program}.mjs`, args, folder)) as Measured;
}

function in_browser(engine: Engine, folder: string): Run {
  return async (program) => {
    let code_bytes = 0;
    const peer = resolve(options["peers-dir"], "node_modules");
    const imports = { "vit-msn": "/dist/index.web.js", [PEER]: `/peer/${PEER}/dist/transformers.min.js` };
    const page_html = `<!doctype html><script type="importmap">${JSON.stringify({ imports })}</script>`;
    const places: readonly [RegExp, (path: string) => string][] = [
      [/^dist\//, (path) => path],
      [/^models\//, (path) => join(folder, path)],
      [/^peer\//, (path) => join(peer, path.slice(5))],
      [/^ort\//, (path) => join(peer, "onnxruntime-web/dist", path.slice(4))],
      [/^image\.jpg$/, () => IMAGE],
      [/^[a-z]+\.m?js$/, (path) => join(folder, path)],
    ];
    const server = createServer(async ({ url = "/" }, response) => {
      const path = (url.split("?")[0] as string).slice(1);
      const place = places.find(([pattern]) => pattern.test(path))?.[1](path);
      const body = path === "" ? page_html : place && (await readFile(place).catch(() => undefined));
      if (body && /\.(m?js|wasm)$/.test(path)) code_bytes += body.length;
      response.writeHead(body ? 200 : 404, {
        "content-type": TYPES[extname(path)] ?? "application/octet-stream",
        ...(body && { "content-length": Buffer.byteLength(body) }),
      });
      response.end(body);
    }).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    const browser = await start_browser(engine);
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
      const measured = await with_page(browser, url, (page) =>
        page.run<Measured>(`return (await import("/page.js")).${program}(arg)`, options.size),
      );
      return { ...measured, code_bytes };
    } finally {
      await browser.close();
      server.closeAllConnections();
      server.close();
    }
  };
}

/** Bytes of a folder's files. */
async function bytes_below(path: string): Promise<number> {
  const info = await lstat(path);
  if (!info.isDirectory()) return info.size;
  const sizes = await Promise.all((await readdir(path)).map((name) => bytes_below(join(path, name))));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** What npm installs of each: this package and sharp, or all that transformers.js depends on. */
async function installed_bytes(program: Program): Promise<number> {
  if (program === "transformers_js")
    return bytes_below(await realpath(resolve(options["peers-dir"], "node_modules")));
  const sizes = await Promise.all(["dist", "node_modules/sharp", "node_modules/@img"].map(bytes_below));
  return sizes.reduce((sum, size) => sum + size, 0);
}

async function runs(folder: string): Promise<[string, string, Run][]> {
  const [node, newest] = [await own_node(), await newest_node()];
  const [in_deno, in_bun] = [await deno("--allow-write", "--allow-net"), await bun()];
  const all: [string, string, Run][] = [
    ["node", `Node ${node.version}`, in_process(node, folder)],
    ["deno", `Deno ${in_deno.version}`, in_process(in_deno, folder)],
    ["bun", `Bun ${in_bun.version}`, in_process(in_bun, folder)],
    ...ENGINES.map((engine): [string, string, Run] => [engine, engine, in_browser(engine, folder)]),
  ];
  if (newest) all.splice(1, 0, ["newest", `Node ${newest.version}`, in_process(newest, folder)]);
  return all.filter(([name]) => options.only === undefined || name === options.only);
}

async function fastest(run: Run, program: Program): Promise<Measured> {
  const all: Measured[] = [];
  for (let i = 0; i < Number(options.rounds); i++) all.push(await run(program));
  return all.sort((a, b) => a.first_ms - b.first_ms)[0] as Measured;
}

const megabytes = (bytes: number) => round(bytes / 1e6, 1);

async function row_of(runtime: string, program: Program, run: Run): Promise<[Row, Measured?]> {
  const head = { runtime, package: program === "vit_msn" ? "vit-msn" : "transformers.js" };
  try {
    const measured = await fastest(run, program);
    const { ready_ms, first_ms, later_ms, code_bytes = await installed_bytes(program) } = measured;
    const row = { ...head, "size, MB": megabytes(code_bytes), "ready, ms": round(ready_ms, 0) };
    return [
      { ...row, "first answer, ms": round(first_ms, 0), "a later one, ms": round(later_ms, 0) },
      measured,
    ];
  } catch (error) {
    const lines = String((error as { stderr?: string }).stderr || error)
      .trim()
      .split("\n");
    const reason = lines.find((line) => /error/i.test(line)) ?? lines[0] ?? "";
    return [
      {
        ...head,
        "size, MB": "",
        "ready, ms": `fails: ${reason.slice(0, 80)}`,
        "first answer, ms": "",
        "a later one, ms": "",
      },
    ];
  }
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const folder = await make_project();
  const rows: Row[] = [];
  try {
    for (const [, name, run] of await runs(folder)) {
      const programs: Program[] = options["no-peer"] ? ["vit_msn"] : ["vit_msn", "transformers_js"];
      const found: Measured[] = [];
      for (const program of programs) {
        const [row, measured] = await row_of(name, program, run);
        rows.push(row);
        if (measured) found.push(measured);
        console.error(JSON.stringify(row), JSON.stringify(measured?.best));
      }
      const scores = found.map(({ best }) => best.score);
      if (Math.max(...scores) - Math.min(...scores) > TOLERANCE)
        throw new Error(`${name}: scores differ: ${scores}.`);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  const title =
    `vit-msn-${options.size} (random weights), float32, one thread: package installed (in browsers: code downloaded), ` +
    "model ready and first image classified, from the program's start";
  print(title, where, rows, options.json);
}

await main();
