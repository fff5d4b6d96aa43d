import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { strFromU8, unzipSync } from "fflate";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright";
import { RawImage, type Tensor, ViTImageProcessor, ViTMSNForImageClassification } from "vit-msn";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { build_studio } from "../../examples/studio/build.mjs";
import { serve_studio } from "../../examples/studio/serve.mjs";
import { find_chromium, launch_args } from "../../scripts/chromium.mjs";

// The studio as its users have it: built, served, and driven in Chromium, whose driver has a camera, the clipboard, downloads, keys
// and a switch for the network. What differs by browser is in studio_journey.test.ts. Screenshots: test/screenshots/studio-*.png.

const root = new URL("../../", import.meta.url);
const DESKTOP = { width: 1280, height: 860 };
const in_repository = (path: string) => fileURLToPath(new URL(path, root));
const image = (name: string) => in_repository(`models/fashion/pictures/${name}.png`);

/** The built studio, and what the browser downloaded from it. */
let folder: string;
let downloads: string;
let server: { url: string; close: () => void };
let browser: Browser;
/** What most tests use, one after the other. */
let studio: Opened;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-studio-"));
  downloads = await mkdtemp(join(tmpdir(), "vit-msn-downloads-"));
  await build_studio(folder);
  server = await serve_studio(folder, 0);
  browser = await chromium.launch({
    executablePath: find_chromium(),
    args: [...launch_args, "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"],
  });
  studio = await open({ permissions: ["camera", "clipboard-read", "clipboard-write"] });
});
afterAll(async () => {
  await browser?.close();
  server?.close();
  for (const path of [folder, downloads]) await rm(path, { recursive: true, force: true });
});

interface Opened {
  page: Page;
  context: BrowserContext;
  /** Errors and warnings of the console, and exceptions that nobody caught. */
  complaints: string[];
}
interface Violation {
  id: string;
  nodes: { html: string }[];
}

/** A page with a first result on it, in a browser profile of its own. */
async function open(options: Parameters<Browser["newContext"]>[0] = {}): Promise<Opened> {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  context.setDefaultTimeout(120_000); // the machine may be busy
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(server.url);
  await page.locator(".best-label").waitFor();
  return { page, context, complaints };
}

/** Puts one of the ten first images on the stage. */
const choose_sample = (page: Page, name: string) =>
  page.getByRole("button", { name, exact: true }).first().click();
/** Until what is read is as expected; the machine may be busy. */
const eventually = <T>(read: () => T) => expect.poll(read, { timeout: 120_000 });
const screenshot = (page: Page, name: string) =>
  page.screenshot({ path: in_repository(`test/screenshots/studio-${name}.png`), fullPage: true });
const tabs = async (page: Page) => (await page.getByRole("tab").allInnerTexts()).map((name) => name.trim());
const show = (page: Page, tab: string) => page.getByRole("tab", { name: tab }).click();
const best = (page: Page) => page.locator(".best-label").innerText();
/** What lies over the image, as a data URL. */
const overlay = (page: Page) =>
  page.locator("canvas.overlay").evaluate((canvas) => (canvas as HTMLCanvasElement).toDataURL());

/** Drops files on an element, as from the desktop. */
async function drop(page: Page, selector: string, paths: readonly string[]): Promise<void> {
  const files = await Promise.all(
    paths.map(async (path) => ({
      name: path.split("/").at(-1),
      base64: (await readFile(path)).toString("base64"),
    })),
  );
  const transfer = await page.evaluateHandle(async (given) => {
    const data = new DataTransfer();
    for (const { name, base64 } of given) {
      const blob = await (await fetch(`data:image/png;base64,${base64}`)).blob();
      data.items.add(new File([blob], name as string, { type: "image/png" }));
    }
    return data;
  }, files);
  for (const type of ["dragenter", "dragover", "drop"])
    await page.dispatchEvent(selector, type, { dataTransfer: transfer });
}

/** Presses a key until the focus is on an element; fails where it never gets there. */
async function tab_to(page: Page, selector: string, key = "Tab"): Promise<void> {
  for (let i = 0; i < 80; i++) {
    await page.keyboard.press(key);
    if (await page.evaluate((css) => document.activeElement?.matches(css), selector)) return;
  }
  throw new Error(`The focus never came to ${selector}.`);
}

/** The file that the browser downloads when `act` runs. */
async function downloaded(page: Page, act: () => Promise<void>): Promise<string> {
  const [download] = await Promise.all([page.waitForEvent("download"), act()]);
  const path = join(downloads, download.suggestedFilename());
  await download.saveAs(path);
  return path;
}

/** How much CLS of the ankle boot looks at each patch, by the package in Node. */
async function cls_row(layer: number, head: number): Promise<Float32Array> {
  const source = in_repository("models/fashion");
  const model = await ViTMSNForImageClassification.from_pretrained(source, { device: "wasm" });
  const processor = await ViTImageProcessor.from_pretrained(source);
  const { pixel_values } = await processor(await RawImage.read(image("9-ankle-boot")));
  const { attentions = [] } = await model.forward({ pixel_values, output_attentions: true });
  await model.dispose();
  const { data, dims } = attentions[layer] as Tensor<"float32">;
  const tokens = dims[3] as number;
  const start = head * tokens * tokens;
  return data.subarray(start + 1, start + tokens);
}

/** Makes a class in the Teach panel and gives it images. */
async function teach(page: Page, label: string, paths: readonly string[]): Promise<void> {
  await page.getByLabel("A new class").fill(label);
  await page.getByRole("button", { name: "Add class" }).click();
  await page
    .getByLabel(`Choose pictures of ${label}`, { exact: true })
    .and(page.locator("input"))
    .setInputFiles(paths);
  await page
    .getByRole("list", { name: `Pictures of ${label}` })
    .getByRole("listitem")
    .nth(paths.length - 1)
    .waitFor();
}

test("a result comes by itself; an image is dropped and gets its scores", async () => {
  const { page } = studio;
  expect(await best(page)).toBe("Ankle boot");
  await drop(page, "body", [image("8-bag")]);
  await eventually(() => best(page)).toBe("Bag");
  const rows = page.getByRole("list", { name: "Scores", exact: true }).getByRole("listitem");
  expect(await rows.count()).toBe(10);
  await eventually(() => page.getByRole("status").innerText()).toMatch(/8-bag\.png: Bag, [\d.]+ %/);
  await screenshot(page, "recognise");
});

test("images are chosen, pasted and taken by the camera", async () => {
  const { page } = studio;
  await page.locator("#choose-pictures").setInputFiles([image("1-trouser"), image("3-dress")]);
  await eventually(() => best(page)).toBe("Trouser");
  const bytes = [...(await readFile(image("8-bag")))];
  await page.evaluate(async (given) => {
    const blob = new Blob([new Uint8Array(given)], { type: "image/png" });
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
  }, bytes);
  await page.getByRole("button", { name: "Paste" }).click();
  await eventually(() => best(page)).toBe("Bag");
  const count = await page.locator(".thumb").count();
  await page.getByRole("button", { name: "Camera" }).click();
  await page.getByRole("button", { name: "Take the picture" }).click();
  await eventually(() => page.locator(".thumb").count()).toBe(count + 1);
  await page.getByRole("dialog").waitFor({ state: "detached" });
});

test("a file that isn't an image is an error with advice, and the page still works", async () => {
  const { page } = studio;
  await page.locator("#choose-pictures").setInputFiles(in_repository("LICENSE"));
  const alert = page.locator("#panel-recognise").getByRole("alert");
  await eventually(() => alert.innerText()).toMatch(/LICENSE.*Choose another picture/s);
  // No image that is broken: its name in the strip, and a word on the stage.
  await eventually(() => page.locator(".strip .unreadable").allInnerTexts()).toEqual(["LICENSE"]);
  expect(await page.locator(".stage-detail").innerText()).toBe("can't be shown as an image");
  expect(await page.locator(".stage .frame").isVisible()).toBe(false);
  await page.getByRole("button", { name: "Remove LICENSE" }).click();
  await choose_sample(page, "Bag");
  await eventually(() => best(page)).toBe("Bag");
  expect(await alert.count()).toBe(0);
});

test("attention differs by layer, head and mode, and is what the model gives", async () => {
  const { page } = studio;
  await choose_sample(page, "Ankle boot");
  await show(page, "Attention");
  await page.locator("canvas.overlay").waitFor();
  await page.getByRole("radio", { name: "One head" }).check();
  const seen = new Set([await overlay(page)]);
  const slide = async (name: string, key: string) => {
    await page.getByRole("slider", { name }).press(key);
    seen.add(await overlay(page));
  };
  await slide("Layer", "ArrowLeft");
  await slide("Head", "ArrowRight");
  await slide("Head", "ArrowRight");
  for (const mode of ["Mean of heads", "Rollout"]) {
    await page.getByRole("radio", { name: mode }).check();
    seen.add(await overlay(page));
  }
  expect(seen.size).toBe(6);
  await page.getByRole("radio", { name: "One head" }).check();
  await screenshot(page, "attention");
  // Layer 6, head 2 of the ankle boot, beside the package's own output.
  await page.getByRole("slider", { name: "Layer" }).press("End");
  await page.getByRole("slider", { name: "Head" }).press("Home");
  await page.getByRole("slider", { name: "Head" }).press("ArrowRight");
  const row = await cls_row(5, 1);
  const most = Math.max(...row);
  const [y, x] = [Math.floor(row.indexOf(most) / 7) + 1, (row.indexOf(most) % 7) + 1];
  expect(await page.locator(".scale").innerText()).toContain(
    `Layer 6, head 2: the brightest patch, row ${y}, column ${x}, gets ${(100 * most).toFixed(1)} %`,
  );
});

test("features are colours, and near images are those of its kind", async () => {
  const { page } = studio;
  const before = await page.locator(".thumb").count();
  await page.getByRole("button", { name: "More samples" }).click();
  await eventually(() => page.locator(".thumb").count()).toBe(before + 50);
  await show(page, "Features");
  await page.locator("canvas.overlay").waitFor();
  const alone = await overlay(page);
  const near = page.locator(".neighbours button");
  await eventually(() => near.count()).toBe(8);
  expect(await near.first().getAttribute("aria-label")).toMatch(/^Ankle boot/);
  await page.getByRole("radio", { name: "All pictures" }).check();
  await eventually(() => overlay(page)).not.toBe(alone);
  await screenshot(page, "features");
  await near.first().click();
  await eventually(() => page.locator(".stage-name").innerText()).toMatch(/^Ankle boot \d/);
});

test("fewer patches are visible, and the page shows what is still recognised", async () => {
  const { page } = studio;
  await choose_sample(page, "Ankle boot");
  await show(page, "Masking");
  const verdict = page.locator(".verdict");
  const slider = page.getByRole("slider", { name: "Patches the model sees" });
  await eventually(() => verdict.innerText()).toMatch(/from 25 of 49 patches/);
  await slider.press("End");
  await eventually(() => verdict.innerText()).toMatch(/^Still Ankle boot, from 49 of 49 patches/);
  await slider.press("Home");
  await eventually(() => verdict.innerText()).toMatch(/from 1 of 49 patches/);
  await eventually(() => page.locator(".curve circle").count()).toBe(10);
  const random = await overlay(page);
  await page.getByRole("radio", { name: "Most looked at" }).check();
  await eventually(() => overlay(page)).not.toBe(random);
  await screenshot(page, "masking");
});

test("two classes are taught, judged by leave-one-out, saved, and opened again", async () => {
  const { page } = studio;
  await show(page, "Teach");
  await teach(page, "shoes", ["5-sandal", "7-sneaker", "9-ankle-boot"].map(image));
  await teach(page, "tops", ["0-t-shirt-top", "2-pullover", "6-shirt"].map(image));
  const accuracy = page.locator(".accuracy", { hasText: "6 of 6 pictures" });
  await accuracy.waitFor();
  await page.getByRole("columnheader", { name: "shoes" }).waitFor();
  await choose_sample(page, "Coat");
  const scores = page.getByRole("list", { name: "Scores of your classes for this picture" });
  await eventually(() => scores.innerText()).toMatch(/^tops/);
  await screenshot(page, "teach");
  const save = page.getByRole("button", { name: "Save what it learned" });
  const head = await downloaded(page, () => save.click());
  const model = await downloaded(page, () => page.getByRole("button", { name: "Save as a model" }).click());
  const files = unzipSync(await readFile(model));
  expect(Object.keys(files).sort()).toEqual(["config.json", "model.safetensors", "preprocessor_config.json"]);
  expect(JSON.parse(strFromU8(files["config.json"] as Uint8Array)).id2label).toEqual({
    0: "shoes",
    1: "tops",
  });
  await show(page, "Recognise");
  await eventually(() => page.locator(".taught-scores").innerText()).toMatch(/tops/);
  await show(page, "Teach");
  for (const label of ["shoes", "tops"]) await page.getByRole("button", { name: `Forget ${label}` }).click();
  await eventually(() => page.locator(".class-card").count()).toBe(0);
  const open_saved = page.getByLabel("Open what was saved");
  await open_saved.setInputFiles(head);
  await accuracy.waitFor();
  expect(await page.locator(".class-card").allInnerTexts()).toHaveLength(2);
  await open_saved.setInputFiles(in_repository("LICENSE"));
  await eventually(() => page.locator("#panel-teach").getByRole("alert").innerText()).toMatch(
    /few_shot\.json/,
  );
});

test("the engine is shown, timed and profiled; another model is loaded from files, with other weights", async () => {
  const { page } = studio;
  await choose_sample(page, "Ankle boot");
  await show(page, "Engine");
  const facts = page.locator(".facts");
  expect(await facts.innerText()).toMatch(/relaxed\+threads[\s\S]*float32[\s\S]*parameters/);
  await page.getByRole("button", { name: "Time it" }).click();
  await page.locator(".times", { hasText: "A picture takes" }).waitFor();
  await page.getByRole("button", { name: "Profile the kernels" }).click();
  await page.getByRole("row", { name: /scaled_dot_product_attention/ }).waitFor();
  const trace = await downloaded(page, () => page.getByRole("button", { name: "Chrome trace" }).click());
  expect(JSON.parse(await readFile(trace, "utf8")).traceEvents.length).toBeGreaterThan(30);
  await screenshot(page, "engine");
  await page.getByLabel("Model", { exact: true }).selectOption("files");
  const files = ["config.json", "preprocessor_config.json", "model.safetensors"];
  const paths = files.map((file) => in_repository(`models/fashion/${file}`));
  const choose = page.getByLabel("Choose files").and(page.locator("input"));
  const load = page.getByRole("button", { name: "Load", exact: true });
  await choose.setInputFiles(paths.slice(0, 2));
  await load.click();
  await eventually(() => page.locator("#panel-engine").getByRole("alert").innerText()).toMatch(
    /model\.safetensors/,
  );
  expect(await facts.innerText()).toMatch(/Fashion/); // the one before stays
  await choose.setInputFiles(paths);
  await page.getByLabel("Weights").selectOption("int8");
  await page.getByLabel("Threads").fill("1");
  await load.click();
  await eventually(() => facts.innerText()).toMatch(/3 files[\s\S]*CPU, relaxed\n[\s\S]*int8/);
  await show(page, "Recognise");
  await eventually(() => best(page)).toBe("Ankle boot");
});

test("pages whose tests cause no error have logged none", () => {
  expect(studio.complaints).toEqual([]);
});

test("a repository of the hub is loaded; one that isn't there is an error, and the earlier model stays", async () => {
  const { page, context } = studio;
  await context.route("https://huggingface.co/**", async (route) => {
    const [, file] = /\/some\/fashion\/resolve\/main\/(\w+\.\w+)$/.exec(route.request().url()) ?? [];
    const path = file && in_repository(`models/fashion/${file}`);
    const headers = { "access-control-allow-origin": "*" };
    if (path && existsSync(path)) await route.fulfill({ path, headers });
    else await route.fulfill({ status: 404, body: "", headers });
  });
  await choose_sample(page, "Ankle boot");
  await show(page, "Engine");
  await page.getByLabel("Model", { exact: true }).selectOption("hub");
  await page.getByLabel("Repository").fill("some/fashion");
  await page.getByRole("button", { name: "Load", exact: true }).click();
  await eventually(() => page.locator(".facts").innerText()).toMatch(/some\/fashion/);
  await page.getByLabel("Repository").fill("nobody/nothing");
  await page.getByRole("button", { name: "Load", exact: true }).click();
  const alert = page.locator("#panel-engine").getByRole("alert");
  await eventually(() => alert.innerText()).toMatch(/nobody\/nothing[\s\S]*Check the name/);
  await show(page, "Recognise");
  await eventually(() => best(page)).toBe("Ankle boot");
});

test("WebGPU is chosen, and gives the same", async ({ skip }) => {
  const { page } = studio;
  const has_gpu = await page.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter()));
  if (inject("require_gpu")) expect(has_gpu).toBe(true);
  else skip(!has_gpu, "no adapter");
  await choose_sample(page, "Ankle boot");
  await show(page, "Engine");
  await page.getByLabel("Model", { exact: true }).selectOption("carried");
  await page.locator("#panel-engine").getByLabel("Backend").selectOption("webgpu");
  await page.getByLabel("Weights").selectOption("float32");
  await page.getByRole("button", { name: "Load", exact: true }).click();
  await eventually(() => page.locator(".facts").innerText()).toMatch(/WebGPU on/);
  await show(page, "Recognise");
  await eventually(() => page.locator(".best").innerText()).toMatch(/Ankle boot\s+98\.7 %/);
});

test("on a phone nothing is wider than the screen", async () => {
  const { page } = studio;
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ colorScheme: "dark" });
  for (const tab of await tabs(page)) {
    await show(page, tab);
    expect(await page.evaluate(() => document.documentElement.scrollWidth), tab).toBeLessThanOrEqual(360);
    await screenshot(page, `phone-${tab}`);
  }
  await page.setViewportSize(DESKTOP);
});

test.each(["light", "dark"] as const)("no rule of axe is broken in any panel, %s", async (colorScheme) => {
  const { page } = studio;
  await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
  await page.addScriptTag({ path: in_repository("node_modules/axe-core/axe.min.js") });
  for (const tab of await tabs(page)) {
    await show(page, tab);
    await page.evaluate(() => Promise.allSettled(document.getAnimations().map(({ finished }) => finished)));
    const violations = await page.evaluate(async () => {
      const { axe } = window as unknown as { axe: { run: () => Promise<{ violations: Violation[] }> } };
      return (await axe.run()).violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
    });
    expect(violations, tab).toEqual([]);
  }
});

test("the keyboard alone is enough", async () => {
  const { page, context, complaints } = await open();
  await page.keyboard.press("Tab");
  expect(await page.evaluate(() => document.activeElement?.className)).toBe("skip");
  await tab_to(page, ".strip li:nth-child(9) .thumb");
  await page.keyboard.press("Enter");
  await eventually(() => best(page)).toBe("Bag");
  await tab_to(page, "[role=tab][aria-selected=true]");
  await page.keyboard.press("ArrowDown");
  await page.locator("#panel-attention canvas.atlas").waitFor();
  await tab_to(page, "#panel-attention input[type=range]");
  const before = await overlay(page);
  await page.keyboard.press("ArrowLeft");
  expect(await overlay(page)).not.toBe(before);
  await tab_to(page, "[role=tab][aria-selected=true]", "Shift+Tab");
  while (!(await page.locator("#panel-teach").isVisible())) await page.keyboard.press("ArrowDown");
  await tab_to(page, "#panel-teach input[type=text]");
  await page.keyboard.type("bags");
  await page.keyboard.press("Enter");
  await eventually(() => page.evaluate(() => document.activeElement?.className)).toBe("add-current");
  await page.keyboard.press("Enter");
  await page.getByRole("list", { name: "Pictures of bags" }).getByRole("listitem").waitFor();
  expect(complaints).toEqual([]);
  await context.close();
});

test("after the first load it works without a network, isolated, and without requests to other hosts", async () => {
  const { page, context, complaints } = await open();
  const hosts = new Set<string>();
  context.on("request", (request) => hosts.add(new URL(request.url()).origin));
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  await context.setOffline(true);
  await page.reload();
  await page.locator(".best-label").waitFor();
  expect(await best(page)).toBe("Ankle boot");
  expect(await page.evaluate(() => crossOriginIsolated)).toBe(true);
  await page.locator("#choose-pictures").setInputFiles(image("8-bag"));
  await eventually(() => best(page)).toBe("Bag");
  expect([...hosts].filter((host) => host !== "null")).toEqual([new URL(server.url).origin]);
  expect(complaints).toEqual([]);
  await context.close();
});

test("a fresh model learns from the images without labels; it is stopped, resumed, saved and used", async () => {
  const { page, context, complaints } = await open();
  await show(page, "Pre-train");
  await page.getByText("How it learns").click();
  const panel = page.locator("#panel-pretrain");
  await panel.getByLabel("Pictures a step").fill("8");
  await panel.getByLabel("Passes over the pictures").fill("5000");
  await panel.getByLabel("Prototypes").fill("16");
  await panel.getByLabel("Focal views").fill("1");
  await page.getByRole("button", { name: "Start" }).click();
  const step = async () =>
    Number((await panel.locator(".run-numbers dd").first().innerText()).split(" of ")[0]);
  await panel.locator(".run-numbers dd").first().waitFor();
  await eventually(step).toBeGreaterThan(2);
  await show(page, "Recognise"); // the run goes on, and the page is usable
  await choose_sample(page, "Bag");
  await eventually(() => best(page)).toBe("Bag");
  await show(page, "Pre-train");
  const stop = page.getByRole("button", { name: "Stop and keep" });
  const go_on = page.getByRole("button", { name: /^Resume from step \d+$/ });
  await stop.click();
  await go_on.waitFor();
  const stopped_at = Number(/\d+/.exec(await go_on.innerText())?.[0]);
  expect(stopped_at).toBe(await step());
  await go_on.click();
  await eventually(step).toBeGreaterThan(stopped_at);
  await stop.click();
  await go_on.waitFor();
  expect(await panel.getByRole("img", { name: /^Loss by step/ }).count()).toBe(1);
  await screenshot(page, "pretrain");
  const saved = await downloaded(page, () => panel.getByRole("button", { name: "Save as a model" }).click());
  const files = unzipSync(await readFile(saved));
  expect(Object.keys(files).sort()).toEqual(["config.json", "model.safetensors", "preprocessor_config.json"]);
  await page.getByRole("button", { name: "Use it here" }).click();
  await eventually(() => page.locator(".chip").innerText()).toMatch(/^Pre-trained here/);
  await show(page, "Recognise");
  await page.getByText("This model is a backbone").waitFor();
  expect(complaints).toEqual([]);
  await context.close();
});
