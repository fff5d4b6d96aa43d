import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname } from "node:path";
import { type Browser, chromium } from "playwright";
import { afterAll, beforeAll, expect, test } from "vitest";
import { find_chromium, launch_args } from "../../scripts/chromium.mjs";

// Threads in a browser: a page of its own, because they depend on the headers it is served with.

const CONTENT_TYPES: Record<string, string> = { ".js": "text/javascript", ".wasm": "application/wasm" };
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};
const root = new URL("../../", import.meta.url);

/** The program of the page's Worker, and of the page itself: classifies noise and tells what ran. */
const PROGRAM = `
import { env, Tensor, ViTMSNForImageClassification } from "/dist/index.web.js";
export async function run(num_threads) {
  const warnings = [];
  env.warn = (message) => warnings.push(message);
  const config = { hidden_size: 192, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 768 };
  const model = await ViTMSNForImageClassification.from_config(config, { num_threads });
  const data = Float32Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i * 0.7));
  const { logits } = await model.forward({ pixel_values: new Tensor("float32", data, [1, 3, 224, 224]) });
  const info = model.engine_info;
  await model.dispose();
  return { ...info, warnings, logits: [...logits.data] };
}
if (typeof document === "undefined") onmessage = async ({ data }) => postMessage(await run(data));
`;

interface Outcome {
  level: string;
  threads: number;
  reasons: string[];
  warnings: string[];
  logits: number[];
}

let server: Server;
let browser: Browser;
let host: string;

beforeAll(async () => {
  server = createServer(async (request, response) => {
    const path = (request.url ?? "/").slice(1);
    const headers = { ...(path !== "plain" && ISOLATION) };
    if (path === "plain" || path === "isolated") {
      response.writeHead(200, { "content-type": "text/html", ...headers }).end("<!doctype html>");
    } else if (path === "program.js") {
      response.writeHead(200, { "content-type": "text/javascript", ...headers }).end(PROGRAM);
    } else {
      const body = await readFile(new URL(path, root)).catch(() => undefined);
      if (body === undefined) response.writeHead(404).end();
      else
        response.writeHead(200, { "content-type": CONTENT_TYPES[extname(path)] ?? "", ...headers }).end(body);
    }
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  host = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  browser = await chromium.launch({ executablePath: find_chromium(), args: launch_args });
});
afterAll(async () => {
  await browser.close();
  server.close();
});

/** Runs the program on a page, in a Worker or on the page's main thread. */
async function run_on(path: string, in_worker: boolean, num_threads: number): Promise<Outcome> {
  const page = await browser.newPage();
  await page.goto(`${host}/${path}`);
  // As text: the test runner rewrites imports in code.
  const outcome = await page.evaluate(
    in_worker
      ? `new Promise((resolve, reject) => {
          const worker = new Worker("/program.js", { type: "module" });
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = ({ message }) => reject(new Error(message));
          worker.postMessage(${num_threads});
        })`
      : `import("/program.js").then(({ run }) => run(${num_threads}))`,
  );
  await page.close();
  return outcome as Outcome;
}

test("a Worker of an isolated page computes on several threads, and gets the same bits", async () => {
  const alone = await run_on("isolated", true, 1);
  const shared = await run_on("isolated", true, 3);
  expect([alone.level, alone.threads]).toEqual(["relaxed", 1]);
  expect([shared.level, shared.threads, shared.reasons]).toEqual(["relaxed+threads", 3, []]);
  expect(shared.logits).toEqual(alone.logits);
});

test.each([
  ["isolated", false, "load the model in a Worker"],
  ["plain", true, "crossOriginIsolated"],
] as const)(
  "on a page that is %s (in a Worker: %s) it runs on one and says why",
  async (path, in_worker, reason) => {
    const outcome = await run_on(path, in_worker, 2);
    expect([outcome.level, outcome.threads]).toEqual(["relaxed", 1]);
    expect(outcome.reasons.join(" ")).toContain(reason);
    expect(outcome.warnings).toHaveLength(1);
  },
);
