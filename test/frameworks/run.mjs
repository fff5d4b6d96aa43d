// npm run test:frameworks -- [NAME…]: builds and runs the apps of this folder with the packed package. See README.md.
import { execFile, spawn } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createServer as listen } from "node:net";
import { tmpdir } from "node:os";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { chromium } from "playwright";
import { find_chromium, launch_args } from "../../scripts/chromium.mjs";
import { apps } from "./apps.mjs";

/** @typedef {import("./apps.mjs").App} App */

const run = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
/** Outside of this repository, whose tsconfig.json and package.json would be those of the apps. */
const out = await mkdtemp(join(tmpdir(), "vit-msn-frameworks-"));
/** How long an app may take to start or answer, far more than any needs. */
const PATIENCE_MS = 120_000;

const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(apps);
const unknown = names.filter((name) => !Object.hasOwn(apps, name));
if (unknown.length > 0) {
  console.error(`There is no app ${unknown.join(", ")}; choose from ${Object.keys(apps).join(", ")}.`);
  process.exit(2);
}

const [packed] = JSON.parse(
  (await run("npm", ["pack", "--ignore-scripts", "--json", "--pack-destination", out], { cwd: root })).stdout,
);
const browser = await chromium.launch({ executablePath: find_chromium(), args: launch_args });
for (const name of names) {
  try {
    const answers = await try_app(name, /** @type {App} */ (apps[name]));
    console.log(`✓ ${name}: ${answers.join("; ")}`);
  } catch (error) {
    console.log(`✗ ${name}: ${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  }
}
await browser.close();
await rm(out, { recursive: true, force: true });

/** @param {string} name @param {App} app @returns {Promise<string[]>} what each page and route answered. */
async function try_app(name, app) {
  const folder = join(out, name);
  await prepare(folder, app);
  let output = "";
  for (const command of app.build) output += await npx(folder, command);
  // A static server serves the build alone.
  for (const name of app.site ? ["boot.png", "model"] : [])
    await cp(join(folder, app.images, name), join(folder, app.site ?? "", name), { recursive: true });
  if (app.pages.length === 0 && app.routes === undefined)
    return [check(/ANSWER (.*)/.exec(output)?.[1] ?? output, "the test", false)];
  const { origin, stop } = app.server
    ? await start(folder, app.server)
    : await serve(join(folder, app.site ?? "."));
  try {
    const answers = [];
    for (const path of app.pages)
      answers.push(check(await title_of(`${origin}${path}`), path, app.has_threads === true));
    for (const path of app.routes ?? []) {
      const response = await fetch(`${origin}${path}`, { signal: AbortSignal.timeout(PATIENCE_MS) });
      answers.push(check(await response.text(), path, false));
    }
    return answers;
  } finally {
    await stop();
  }
}

/** @param {string} folder @param {App} app */
async function prepare(folder, app) {
  await cp(join(here, app.folder), folder, { recursive: true });
  const manifest = { name: "app", private: true, type: "module" };
  await writeFile(join(folder, "package.json"), JSON.stringify(manifest));
  for (const [file, text] of Object.entries(app.files ?? {})) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await writeFile(join(folder, file), text);
  }
  const packages = Object.entries(app.packages).map(([name, version]) => `${name}@${version}`);
  await run("npm", ["install", "--no-audit", "--no-fund", `../${packed.filename}`, ...packages], {
    cwd: folder,
  });
  const images = join(folder, app.images);
  await cp(join(root, "dist/models/fashion"), join(images, "model"), { recursive: true });
  await cp(join(root, "dist/models/fashion/pictures/9-ankle-boot.png"), join(images, "boot.png"));
}

/** @param {string} folder @param {readonly string[]} command */
async function npx(folder, command) {
  try {
    const env = { ...process.env, NODE_ENV: "production" };
    const { stdout, stderr } = await run("npx", ["--no-install", ...command], { cwd: folder, env });
    return stdout + stderr;
  } catch (error) {
    const { stdout, stderr } = /** @type {{ stdout: string, stderr: string }} */ (error);
    throw new Error(`${command.join(" ")} failed:\n${stdout}\n${stderr}`);
  }
}

/** @param {string} answer @param {string} what @param {boolean} has_threads */
function check(answer, what, has_threads) {
  /** @type {{ label?: string, score?: number, level?: string }} */
  let found;
  try {
    found = JSON.parse(answer);
  } catch {
    throw new Error(`${what}: ${answer.slice(0, 2000)}`);
  }
  const is_right = found.label === "Ankle boot" && Math.abs((found.score ?? 0) - 0.9973) < 1e-3;
  const is_threaded = !has_threads || found.level?.endsWith("+threads");
  if (!is_right || !is_threaded) throw new Error(`${what}: ${answer}`);
  return `${what} ${found.label} ${found.score?.toFixed(4)} ${found.level ?? ""}`.trim();
}

/** The title of a page once it has an answer. @param {string} url */
async function title_of(url) {
  const page = await browser.newPage();
  try {
    /** @type {string[]} */
    const messages = [];
    page.on("pageerror", (error) => messages.push(String(error)));
    await page.goto(url);
    await page
      .waitForFunction(() => /^(\{|failed)/.test(document.title), undefined, { timeout: PATIENCE_MS })
      .catch(() => messages.push("no answer"));
    const title = await page.title();
    return title.startsWith("{") ? title : [title, ...messages].join("\n");
  } finally {
    await page.close();
  }
}

/** Starts an app's own server. @param {string} folder @param {readonly string[]} command */
async function start(folder, command) {
  const port = await free_port();
  const [program = "", ...words] = command.map((word) => word.replace("$PORT", String(port)));
  const args = program === "node" ? words : [join(folder, "node_modules/.bin", program), ...words];
  const env = { ...process.env, PORT: String(port), NODE_ENV: "production" };
  const server = spawn(process.execPath, args, { cwd: folder, env, stdio: "inherit" });
  const origin = `http://127.0.0.1:${port}`;
  const until = Date.now() + PATIENCE_MS;
  while (
    !(await fetch(origin)
      .then((response) => response.ok)
      .catch(() => false))
  ) {
    if (server.exitCode !== null || Date.now() > until) throw new Error(`${command.join(" ")} didn't start`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return { origin, stop: async () => void server.kill() };
}

async function free_port() {
  const server = listen();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address ? address.port : 0;
}

/** A static server whose pages are cross-origin isolated, as threads need. @param {string} folder */
async function serve(folder) {
  const server = createServer(async (request, response) => {
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    const file = join(folder, path.endsWith("/") ? `${path}index.html` : path);
    const headers = {
      "content-type": TYPES[/** @type {keyof typeof TYPES} */ (extname(file))] ?? "application/octet-stream",
      "cross-origin-opener-policy": "same-origin",
      "cross-origin-embedder-policy": "require-corp",
    };
    const body = await readFile(file).catch(() => undefined);
    response.writeHead(body === undefined ? 404 : 200, headers).end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const address = server.address();
  const port = typeof address === "object" && address ? address.port : 0;
  return { origin: `http://127.0.0.1:${port}`, stop: async () => void server.close() };
}
