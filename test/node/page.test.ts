import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, chromium, type Page } from "playwright";
import { afterAll, beforeAll, expect, test } from "vitest";
import { find_chromium, launch_args } from "../../scripts/chromium.mjs";

/** What a plain page needs from a static server. */
const CONTENT_TYPES: Record<string, string> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};
const root = new URL("../../", import.meta.url);

let server: Server;
let browser: Browser;
let page: Page;
const asked: string[] = [];

beforeAll(async () => {
  server = createServer(async (request, response) => {
    const path = (request.url ?? "/").slice(1);
    asked.push(path);
    const body = await readFile(new URL(path, root)).catch(() => undefined);
    if (body === undefined) response.writeHead(404).end();
    else response.writeHead(200, { "content-type": CONTENT_TYPES[extname(path)] ?? "" }).end(body);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  browser = await chromium.launch({ executablePath: find_chromium(), args: launch_args });
  page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/examples/page.html`);
});
afterAll(async () => {
  await browser.close();
  server.close();
});

const in_repository = (path: string) => fileURLToPath(new URL(path, root));
const status = () => page.getByRole("status");

test("a plain page loads the engine and the bundled model, and classifies a chosen image", async () => {
  await page.getByText("Ready").waitFor();
  expect(asked.filter((path) => path.endsWith(".wasm"))).toEqual(["dist/vit_msn_relaxed.wasm"]);
  expect(asked).toContain("dist/models/fashion/model.safetensors");
  await page.locator("input").setInputFiles(in_repository("models/fashion/pictures/9-ankle-boot.png"));
  await page.getByText("Done in").waitFor();
  const rows = await page.locator("li").allInnerTexts();
  expect(rows).toHaveLength(5);
  expect(rows[0]).toMatch(/^Ankle boot/);
  await page.screenshot({ path: in_repository("test/screenshots/page.png") });
});

test("a file that isn't an image is a one-sentence error, and the page still works", async () => {
  await page.locator("input").setInputFiles(in_repository("LICENSE"));
  await expect.poll(() => status().innerText()).toMatch(/LICENSE/);
  await page.locator("input").setInputFiles(in_repository("models/fashion/pictures/8-bag.png"));
  await page.getByText("Bag").waitFor();
});
