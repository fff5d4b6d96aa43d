import { cp, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Browser, chromium, type Page } from "playwright";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { find_chromium, launch_args } from "../../scripts/chromium.mjs";
import { ENGINES, start_browser, text_of } from "../support/browsers/browsers.ts";
import { type PackedProject, packed_project, root, run } from "../support/packed.ts";
import { type StaticServer, serve } from "../support/static_server.ts";
import { start_workerd } from "../support/workerd.ts";

// Every example, built from the packed package and used.

const image = (name: string) => join(root, "models/fashion/pictures", name);
let project: PackedProject;
let browser: Browser;

beforeAll(async () => {
  const packages = ["sharp", "vite", "webpack", "webpack-cli", "esbuild", "@jsquash"];
  project = await packed_project(packages);
  browser = await chromium.launch({ executablePath: find_chromium(), args: launch_args });
});
afterAll(async () => {
  await browser?.close();
  await project?.remove();
});

const example = (name: string) => join(project.folder, "examples", name);
const node = (folder: string, ...args: string[]) => run(process.execPath, args, { cwd: folder });
const bin = (path: string) => join(project.folder, "node_modules", path);

/** Chooses an image in an example's page. */
async function classify(page: Page, name: string): Promise<string> {
  const output = page.locator("output");
  const before = await output.innerText();
  await page.locator("input:enabled").setInputFiles(image(name));
  await expect.poll(() => output.innerText(), { timeout: 120_000 }).not.toBe(before);
  return output.innerText();
}

/** Opens a built page and classifies with it; gives what it downloaded. */
async function use_page(folder: string): Promise<string[]> {
  let server: StaticServer | undefined;
  const context = await browser.newContext();
  try {
    server = await serve(folder);
    const page = await context.newPage();
    const faults: string[] = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    await page.goto(server.url);
    await page.locator("input:enabled").waitFor();
    expect(await classify(page, "8-bag.png")).toMatch(/^Bag \d/);
    expect(await classify(page, "9-ankle-boot.png")).toMatch(/^Ankle boot \d/);
    expect(faults).toEqual([]);
    return server.asked;
  } finally {
    await context.close();
    await server?.close();
  }
}

test("node: a script", async () => {
  const { stdout } = await node(example("node"), "classify.js", image("8-bag.png"));
  expect(stdout).toMatch(/8-bag\.png: Bag \(\d/);
});

describe("apps", () => {
  const builds: Record<string, () => Promise<unknown>> = {
    vite: () => node(example("vite"), bin("vite/bin/vite.js"), "build"),
    webpack: () => node(example("webpack"), bin("webpack/bin/webpack.js")),
    esbuild: () => node(example("esbuild"), "build.js"),
  };

  test.each(Object.keys(builds))("%s", { timeout: 240_000 }, async (name) => {
    await builds[name]?.().catch((error) => {
      throw new Error(`${error.stdout}\n${error.stderr}`);
    });
    const asked = await use_page(join(example(name), "dist"));
    // One engine, and nothing that classifying doesn't take.
    expect(asked.filter((path) => path.endsWith(".wasm"))).toHaveLength(1);
    expect(asked.filter((path) => /few_shot|pytorch|training/.test(path))).toEqual([]);
  });

  test.each(["vite", "webpack"])(
    "%s copies the bundled model into an app that names none",
    { timeout: 240_000 },
    async (name) => {
      const edit = async (file: string, from: RegExp, to: string) => {
        const path = join(example(name), file);
        await writeFile(path, (await readFile(path, "utf8")).replace(from, to));
      };
      await edit("main.js", /, ".\/fashion"/, "");
      // What the example itself copies.
      await edit(
        `${name}.config.js`,
        /publicDir: .*,|plugins: .*,/,
        name === "vite" ? "publicDir: false," : "",
      );
      await builds[name]?.();
      await cp(join(example(name), "index.html"), join(example(name), "dist/index.html"), {
        force: name !== "vite",
      });
      const asked = await use_page(join(example(name), "dist"));
      expect(asked.filter((path) => path.endsWith(".safetensors"))).toHaveLength(1);
    },
  );
});

test("page.html: a plain page next to the package's files", async () => {
  const folder = join(project.folder, "site");
  await cp(join(project.folder, "package/dist"), join(folder, "dist"), { recursive: true });
  await cp(example("page.html"), join(folder, "examples/index.html"));
  const server = await serve(folder);
  const page = await browser.newPage();
  try {
    await page.goto(`${server.url}examples/`);
    await page.locator("input:enabled").setInputFiles(image("8-bag.png"));
    await page.getByText("Bag").waitFor();
  } finally {
    await page.close();
    await server.close();
  }
});

describe("service-worker: a page that works without a network", () => {
  let folder: string;
  beforeAll(async () => {
    folder = example("service-worker");
    await cp(join(project.folder, "package/dist"), join(folder, "vit-msn"), { recursive: true });
  });

  test.each(ENGINES)("%s", async (engine) => {
    const server = await serve(folder);
    const started = await start_browser(engine);
    try {
      const page = await started.open();
      const output = () => text_of(page, "output");
      const open_and_classify = async (name: string) => {
        await page.goto(server.url);
        await expect.poll(output, { timeout: 120_000 }).toMatch(/^Ready/);
        await page.choose_files("input", image(name));
        await expect.poll(output, { timeout: 120_000 }).not.toMatch(/^Ready/);
        return output();
      };
      expect(await open_and_classify("8-bag.png")).toMatch(/^Bag \d/);
      // What isn't asked for here comes out of the worker.
      const scripts = new Set(server.asked.filter((path) => path.endsWith(".js")));
      expect([...scripts]).toEqual(["sw.js", "vit-msn/static.web.js"]);
      await server.close();
      expect(await open_and_classify("9-ankle-boot.png")).toMatch(/^Ankle boot \d/);
    } finally {
      await started.close();
      await server.close();
    }
  });
});

test("edge-worker: classifies posted images in workerd", async () => {
  const folder = example("edge-worker");
  await node(folder, "build.js");
  const server = await serve(join(project.folder, "package/dist/models/fashion"));
  const workerd = await start_workerd(join(folder, "workerd.capnp"), { MODEL: server.url });
  try {
    const post = async (body: Uint8Array) => {
      const response = await fetch(workerd.url, { method: "POST", body: body as BodyInit });
      return { status: response.status, answer: await response.json() };
    };
    const bag = await readFile(image("8-bag.png"));
    const both = await Promise.all([post(bag), post(await readFile(image("9-ankle-boot.png")))]);
    expect(both.map(({ status }) => status)).toEqual([200, 200]);
    expect(both.map(({ answer }) => answer[0].label)).toEqual(["Bag", "Ankle boot"]);
    const text = await post(new TextEncoder().encode("not an image"));
    expect([text.status, text.answer.code]).toEqual([400, "INVALID_IMAGE"]);
    expect((await post(bag)).answer[0].label).toBe("Bag");
    // What a deployment uploads.
    expect((await stat(join(folder, "dist/worker.js"))).size).toBeLessThan(400_000);
  } finally {
    await workerd.stop();
    await server.close();
  }
});
