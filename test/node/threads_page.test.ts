import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname } from "node:path";
import type { EngineInfo, PretrainedOptions } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { config_json, make_checkpoint } from "../real_size/weights.ts";
import {
  ENGINES,
  simd_level,
  start_browser,
  type TestBrowser,
  type TestPage,
  with_page as use_page,
} from "../support/browsers/browsers.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";

// Threads and Workers in a browser: pages of their own, because they depend on the headers they are served with.

const CONTENT_TYPES: Record<string, string> = { ".js": "text/javascript", ".wasm": "application/wasm" };
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};
const root = new URL("../../", import.meta.url);

/** The program of a page, and of its Worker: loads a model, classifies noise or what is given, and tells what ran. */
const PROGRAM = `
import { env, Tensor, ViTMSNForImageClassification, ViTMSNModel } from "/dist/index.web.js";
const config = { hidden_size: 192, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 768 };
const noise = Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i * 0.7));
export async function run({ options, fixture, pixel_values = noise, dims = [1, 3, 224, 224], ...inputs }) {
  const warnings = [];
  env.warn = (message) => warnings.push(message);
  env.use_cache = false;
  const model_class = inputs.bool_masked_pos ? ViTMSNModel : ViTMSNForImageClassification;
  const model = await (fixture
    ? model_class.from_pretrained(location.origin + "/test/fixtures/" + fixture + "/", options)
    : model_class.from_config(config, options));
  const output = await model.forward({ pixel_values: new Tensor("float32", pixel_values, dims), ...inputs });
  const info = model.engine_info;
  await model.dispose();
  const { data } = output.logits ?? output.last_hidden_state;
  return { ...info, warnings, output: [...data] };
}
if (typeof document === "undefined") onmessage = async ({ data }) => postMessage(await run(data));
`;

/** A service worker as many apps have it: it claims the page, and stays "activating" until that is done. */
const CLAIMING = `
addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => event.respondWith(fetch(event.request)));
`;

/** The body of a page's function: a model on two threads is idle while the service worker claims the page. */
const CLAIMED_WHILE_IDLE = `
const { Tensor, ViTMSNForImageClassification } = await import("/dist/index.web.js");
const config = { hidden_size: 192, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 768 };
const model = await ViTMSNForImageClassification.from_config(config, { num_threads: 2 });
const pixel_values = new Tensor("float32", new Float32Array(3 * 224 * 224).fill(0.5), [1, 3, 224, 224]);
const forward = async () => [...(await model.forward({ pixel_values })).logits.data].join();
const before = await forward();
const claimed = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
const registration = await navigator.serviceWorker.register("/claiming.js");
await claimed;
await fetch("/program.js");
const same = (await forward()) === before;
const { threads } = model.engine_info;
await model.dispose();
await registration.unregister();
return "answered after the claim, and " + threads + " threads computed " + (same ? "the same" : "something else");
`;

/** The body of a page's function: whether a port takes a shared memory. */
const SHARES_MEMORY_WITH_PORTS = `
try {
  new MessageChannel().port1.postMessage(new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }));
  return true;
} catch {
  return false;
}
`;

/** The body of a page's function: the programs of the Workers that the page starts for an engine with three threads. */
const COUNTS_WORKERS = `
const started = [];
const RealWorker = Worker;
globalThis.Worker = class extends RealWorker {
  constructor(url, options) {
    super(url, options);
    started.push(new URL(url).pathname.split("/").at(-1));
  }
};
const { run } = await import("/program.js");
await run({ options: { num_threads: 3 } });
return started;
`;

/** The browser's only adapter, if it has one, is software. */
const NO_GPU = expect.stringContaining("Not on WebGPU");

interface Job {
  options: PretrainedOptions;
  fixture?: string;
  pixel_values?: number[];
  dims?: readonly number[];
  interpolate_pos_encoding?: boolean;
}
interface Outcome extends EngineInfo {
  warnings: string[];
  output: number[];
}

/** Pages by path, and the headers that they and their Workers are served with. */
const PAGES: Record<string, Record<string, string>> = {
  plain: {},
  isolated: ISOLATION,
  no_workers: { ...ISOLATION, "Content-Security-Policy": "worker-src 'none'" },
};

let server: Server;
let host: string;
let small: Record<string, Uint8Array>;

beforeAll(async () => {
  small = {
    "config.json": new TextEncoder().encode(config_json("small")),
    "model.safetensors": make_checkpoint("small"),
  };
  server = createServer(async (request, response) => {
    const path = (request.url ?? "/").slice(1);
    const own = PAGES[path];
    const body = own
      ? "<!doctype html>"
      : path === "program.js"
        ? PROGRAM
        : path === "claiming.js"
          ? CLAIMING
          : path === "small.js"
            ? SMALL
            : path.startsWith("small/")
              ? small[path.slice(6)]
              : await readFile(new URL(path, root)).catch(() => undefined);
    const type = own ? "text/html" : (CONTENT_TYPES[extname(path)] ?? "application/octet-stream");
    response.writeHead(body === undefined ? 404 : 200, { "content-type": type, ...(own ?? ISOLATION) });
    response.end(body);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  host = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => void server.close());

/** Runs the program on the page's main thread. */
const on_page = (page: TestPage, job: Job) =>
  page.run<Outcome>('return (await import("/program.js")).run(arg)', job);

/** Runs it in a Worker of the page. */
const in_worker = (page: TestPage, job: Job) =>
  page.run<Outcome>(
    `return new Promise((resolve, reject) => {
      // Firefox ends a Worker that nothing refers to, whatever it waits for.
      const worker = globalThis.worker = new Worker("/program.js", { type: "module" });
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage(arg);
    })`,
    job,
  );

/** Of test/suite/parity.test.ts, which runs all of them here on one thread and in Node on several. */
const FIXTURES = ["tiny", "tiny_rect", "tiny_nobias", "odd_heads", "interpolate", "multi_label"];
const TOLERANCES = { float32: 1e-4, float16: 5.4e-3, bfloat16: 4e-2, int8: 8e-2 } as const;

describe.each(ENGINES)("%s", (engine) => {
  let browser: TestBrowser;
  let level: string;
  beforeAll(async () => {
    browser = await start_browser(engine);
    level = await with_page("plain", simd_level);
  });
  afterAll(() => browser.close());
  const with_page = <T>(path: string, body: (page: TestPage) => Promise<T>) =>
    use_page(browser, `${host}/${path}`, body);
  /** Why it isn't on WebGPU, and why it isn't on relaxed SIMD where it isn't. */
  const reasons = () => (level === "relaxed" ? [NO_GPU] : [NO_GPU, expect.stringContaining("Relaxed SIMD")]);

  describe("a cross-origin isolated page", () => {
    test("computes on several threads, in the engine's Worker, and gets the same bits", async () => {
      await with_page("isolated", async (page) => {
        const alone = await on_page(page, { options: {} });
        expect(alone).toMatchObject({ level, threads: 1, worker: false });
        const own = await on_page(page, { options: { num_threads: 3 } });
        expect(own).toMatchObject({
          level: `${level}+threads`,
          threads: 3,
          worker: true,
          reasons: reasons(),
          warnings: [],
        });
        expect(own.output).toEqual(alone.output);
      });
    });

    test("computes on several threads in the page's Worker, and gets the same bits", async ({ skip }) => {
      if (!browser.has_nested_workers) return skip("Workers that start others may hang in this browser");
      await with_page("isolated", async (page) => {
        const alone = await on_page(page, { options: {} });
        const inside = await in_worker(page, { options: { num_threads: 3 } });
        expect(inside).toMatchObject({
          level: `${level}+threads`,
          threads: 3,
          worker: false,
          reasons: reasons(),
        });
        const nested = await in_worker(page, { options: { num_threads: 2, worker: true } });
        expect(nested).toMatchObject({
          level: `${level}+threads`,
          threads: 2,
          worker: true,
          reasons: reasons(),
        });
        for (const { output } of [inside, nested]) expect(output).toEqual(alone.output);
      });
    });

    test("the engine's Worker starts no other, since that may hang in Firefox", async ({ skip }) => {
      await with_page("isolated", async (page) => {
        if (!(await page.run<boolean>(SHARES_MEMORY_WITH_PORTS)))
          return skip("this browser shares memory with Workers only, not with ports");
        expect(await page.run(COUNTS_WORKERS)).toEqual([
          "engine_worker.web.js",
          "thread.web.js",
          "thread.web.js",
        ]);
      });
    });

    test("runs on one thread where `worker` is false, and reports why", async () => {
      const job = { options: { num_threads: 2, worker: false } };
      const outcome = await with_page("isolated", (page) => on_page(page, job));
      expect(outcome).toMatchObject({ level, threads: 1, worker: false });
      expect(outcome.reasons.join(" ")).toContain("main thread");
      expect(outcome.warnings).toHaveLength(1);
    });

    test.each(["float32", "float16", "bfloat16", "int8"] as const)(
      "gives the reference's outputs on 2 and 3 threads: %s",
      async (dtype) => {
        await with_page("isolated", async (page) => {
          for (const fixture of FIXTURES) {
            const expected = await read_tensors(`test/fixtures/${fixture}/expected.safetensors`);
            const { data, dims } = expected.get("in.pixel_values") as FixtureTensor;
            for (const num_threads of [2, 3]) {
              const outcome = await on_page(page, {
                options: { num_threads, dtype },
                fixture,
                pixel_values: Array.from(data as Float32Array),
                dims,
                interpolate_pos_encoding: fixture === "interpolate",
              });
              expect(outcome).toMatchObject({
                level: `${level}+threads`,
                threads: num_threads,
                worker: true,
              });
              const logits = expected.get("out.logits")?.data as Float32Array;
              expect(max_difference(outcome.output, logits), fixture).toBeLessThan(TOLERANCES[dtype]);
            }
          }
        });
      },
    );
  });

  test("idle threads don't hold up an app's service worker that claims the page", async () => {
    await with_page("isolated", async (page) => {
      const answer = await page.run<string>(CLAIMED_WHILE_IDLE);
      expect(answer).toBe("answered after the claim, and 2 threads computed the same");
    });
  });

  describe("a page that is not isolated", () => {
    test.each([
      ["its main thread", on_page],
      ["its Worker", in_worker],
    ])("runs on one thread and reports why: %s", async (_, run) => {
      const outcome = await with_page("plain", (page) => run(page, { options: { num_threads: 2 } }));
      expect(outcome).toMatchObject({ level, threads: 1, worker: false });
      expect(outcome.reasons.join(" ")).toContain("crossOriginIsolated");
      expect(outcome.warnings).toHaveLength(1);
    });

    test("can have the engine in a Worker all the same", async () => {
      const job = { options: { num_threads: 2, worker: true } };
      const outcome = await with_page("plain", (page) => on_page(page, job));
      expect(outcome).toMatchObject({ level, threads: 1, worker: true });
      expect(outcome.reasons.join(" ")).toContain("crossOriginIsolated");
      expect(outcome.warnings).toHaveLength(1);
    });
  });

  test("a page stays free while the engine's Worker loads a model of small's size and runs it", async ({
    skip,
  }) => {
    await with_page("isolated", async (page) => {
      if (page.processor_time === undefined)
        return skip("this browser doesn't report the processor time of a page's main thread");
      const used = async (options: PretrainedOptions) => {
        const before = await page.processor_time?.();
        const engine = await page.run<Pick<EngineInfo, "worker" | "threads">>(
          'return (await import("/small.js")).run(arg)',
          options,
        );
        return { ...engine, seconds: ((await page.processor_time?.()) as number) - (before as number) };
      };
      const here = await used({});
      const there = await used({ num_threads: 2 });
      console.log(`The page's thread: ${here.seconds} s, with a Worker ${there.seconds} s`);
      expect([here.worker, there.worker, there.threads]).toEqual([false, true, 2]);
      expect(there.seconds).toBeLessThan(here.seconds / 4);
    });
  });

  test("where the page's policy forbids Workers, the model runs on the page's thread and reports why", async () => {
    const job = { options: { num_threads: 2, worker: true } };
    const outcome = await with_page("no_workers", (page) => on_page(page, job));
    expect(outcome).toMatchObject({ level, threads: 1, worker: false });
    expect(outcome.reasons[0]).toContain("can't run in a Worker here");
    expect(outcome.warnings[0]).toContain("worker is true");
  });
});

/** Loads a model of small's size and runs it. */
const SMALL = `
import { env, Tensor, ViTMSNForImageClassification } from "/dist/index.web.js";
export async function run(options) {
  env.use_cache = false;
  env.warn = () => {};
  const pixel_values = new Tensor("float32", new Float32Array(4 * 3 * 224 * 224).fill(0.5), [4, 3, 224, 224]);
  const model = await ViTMSNForImageClassification.from_pretrained(location.origin + "/small/", options);
  for (let i = 0; i < 5; i++) await model.forward({ pixel_values });
  const { worker, threads } = model.engine_info;
  await model.dispose();
  return { worker, threads };
}
`;
