import { cp, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  ENGINES,
  start_browser,
  type TestBrowser,
  type TestPage,
  text_of,
  with_page,
} from "../support/browsers/browsers.ts";
import { type PackedProject, packed_project, root, run } from "../support/packed.ts";
import { serve } from "../support/static_server.ts";
import { start_workerd } from "../support/workerd.ts";

// Every example, built from the packed package and used. Pages are built once and used in each browser.

const image = (name: string) => join(root, "models/fashion/pictures", name);
let project: PackedProject;
let browsers: TestBrowser[] = [];

beforeAll(async () => {
  const packages = ["sharp", "vite", "webpack", "webpack-cli", "esbuild", "@jsquash"];
  project = await packed_project(packages);
  browsers = await Promise.all(ENGINES.map((engine) => start_browser(engine)));
});
afterAll(async () => {
  await Promise.all(browsers.map((browser) => browser.close()));
  await project?.remove();
});

const example = (name: string) => join(project.folder, "examples", name);
const node = (folder: string, ...args: string[]) => run(process.execPath, args, { cwd: folder });
const bin = (path: string) => join(project.folder, "node_modules", path);

/** Chooses an image in an example's page. */
async function classify(page: TestPage, name: string, answer: string): Promise<string> {
  const output = () => text_of(page, answer);
  const before = await output();
  await page.choose_files("input", image(name));
  await expect.poll(output, { timeout: 120_000 }).not.toBe(before);
  return output();
}

/**
 * Opens a built page in each browser and classifies with it; gives what the last one downloaded.
 * @param answer selects what shows the best class.
 */
async function use_page(folder: string, path = "", answer = "output"): Promise<string[]> {
  let asked: string[] = [];
  for (const browser of browsers) {
    const server = await serve(folder); // of another origin for each: nothing is cached
    try {
      await with_page(browser, `${server.url}${path}`, async (page) => {
        const takes_images = () => page.run("return document.querySelector('input')?.disabled === false");
        await expect.poll(takes_images, { timeout: 120_000, message: browser.engine }).toBe(true);
        expect(await classify(page, "8-bag.png", answer), browser.engine).toMatch(/^Bag\s*\d/);
        expect(await classify(page, "9-ankle-boot.png", answer), browser.engine).toMatch(/^Ankle boot\s*\d/);
        expect(page.faults?.() ?? [], browser.engine).toEqual([]);
      });
      asked = server.asked;
    } finally {
      await server.close();
    }
  }
  return asked;
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
  await use_page(folder, "examples/", "ol li");
});

describe("service-worker: a page that works without a network", () => {
  let folder: string;
  beforeAll(async () => {
    folder = example("service-worker");
    await cp(join(project.folder, "package/dist"), join(folder, "vit-msn"), { recursive: true });
  });

  test.each(ENGINES)("%s", async (engine) => {
    const server = await serve(folder);
    const browser = browsers.find((browser) => browser.engine === engine) as TestBrowser;
    const page = await browser.open();
    try {
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
      await page.close();
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
