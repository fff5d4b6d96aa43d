import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { build_studio } from "../../examples/studio/build.mjs";
import { serve_studio } from "../../examples/studio/serve.mjs";
import {
  ENGINES,
  simd_level,
  start_browser,
  type TestBrowser,
  type TestPage,
  text_of,
} from "../support/browsers/browsers.ts";

// A first visit to the studio in every browser: its service worker claims the page while threads are idle, and what the page fetches
// and imports afterwards comes through that worker. Every panel's first
// result is read in each browser; what needs a camera, a clipboard, downloads, keys or an accessibility checker, by studio.test.ts.

const in_repository = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const image = (name: string) => in_repository(`models/fashion/pictures/${name}.png`);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-studio-"));
  await build_studio(folder);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/**
 * The studio's Worker starts its engine's threads, one for each core, and in Firefox a Worker that starts others may hang
 * while a driver listens: has_nested_workers.
 */
const ONE_CORE = { "dom.maxHardwareConcurrency": 1 };

/** Until what is read is as expected; the machine may be busy. */
const eventually = <T>(read: () => T) => expect.poll(read, { timeout: 120_000 });

describe.each(ENGINES)("%s", (engine) => {
  let server: Awaited<ReturnType<typeof serve_studio>>;
  let browser: TestBrowser;
  let page: TestPage;
  beforeAll(async () => {
    server = await serve_studio(folder, 0);
    browser = await start_browser(engine, { firefoxUserPrefs: ONE_CORE });
    page = await browser.open();
    await page.goto(server.url);
  });
  afterAll(async () => {
    await browser?.close();
    server?.close();
  });

  const best = () => text_of(page, ".best-label");
  const show = (panel: string) => page.click(`#tab-${panel}`);
  const count = (selector: string) =>
    page.run<number>("return document.querySelectorAll(arg).length", selector);
  /** Clicks the visible button whose name begins with this. */
  const press = (name: string) =>
    page.run(
      `const buttons = [...document.querySelectorAll("button")];
      const is_meant = (button) => button.innerText.trim().startsWith(arg) && button.checkVisibility();
      buttons.find(is_meant).click();`,
      name,
    );
  /** Gives the field with this label a value, as a user who types it. */
  const fill = (label: string, value: string) =>
    page.run(
      `const [label, value] = arg;
      const { control } = [...document.querySelectorAll("label")].find(({ innerText }) => innerText === label);
      control.value = value;
      control.dispatchEvent(new Event("input", { bubbles: true }));`,
      [label, value],
    );

  test("an image is classified on the first visit, and again once the service worker has claimed the page", async () => {
    await eventually(best).toBe("Ankle boot");
    await eventually(() => page.run("return navigator.serviceWorker.controller !== null")).toBe(true);
    expect(await page.run("return crossOriginIsolated")).toBe(true);
    await page.choose_files("#choose-pictures", image("8-bag"));
    await eventually(best).toBe("Bag");
    const thumbs = await count(".thumb");
    await press("More samples");
    await eventually(() => count(".thumb")).toBe(thumbs + 50);
  });

  test("attention is drawn over the image", async () => {
    await show("attention");
    await eventually(() =>
      page.run(
        `const canvas = document.querySelector("canvas.overlay");
        if (!canvas?.width) return false;
        return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v > 0);`,
      ),
    ).toBe(true);
  });

  test("a file that isn't an image is an error with advice, and the page still works", async () => {
    await show("recognise");
    await page.choose_files("#choose-pictures", in_repository("LICENSE"));
    const alert = () => text_of(page, "#panel-recognise [role=alert]");
    await eventually(alert).toMatch(/LICENSE[\s\S]*Choose another picture/);
    await page.click('[aria-label="Remove LICENSE"]');
    await page.choose_files("#choose-pictures", image("1-trouser"));
    await eventually(best).toBe("Trouser");
    const is_shown =
      "return Boolean(document.querySelector('#panel-recognise [role=alert]')?.checkVisibility())";
    await eventually(() => page.run(is_shown)).toBe(false);
  });

  test("features are drawn, and near images are those of its kind", async () => {
    await show("features");
    await eventually(() => count(".neighbours button")).toBe(8);
    const name = () =>
      page.run('return document.querySelector(".neighbours button").getAttribute("aria-label")');
    await eventually(name).toMatch(/^Trouser/);
  });

  test("fewer patches are visible, and the page shows what is still recognised", async () => {
    await show("masking");
    await eventually(() => text_of(page, ".verdict")).toContain("from 25 of 49 patches");
    await eventually(() => count(".curve circle")).toBe(10);
  });

  test("two classes are taught and judged", async () => {
    await show("teach");
    const classes = {
      shoes: ["5-sandal", "7-sneaker", "9-ankle-boot"],
      tops: ["0-t-shirt-top", "2-pullover", "6-shirt"],
    };
    for (const [label, names] of Object.entries(classes)) {
      await fill("A new class", label);
      await press("Add class");
      await page.choose_files(`input[aria-label="Choose pictures of ${label}"]`, ...names.map(image));
      await eventually(() => count(`[aria-label="Pictures of ${label}"] li`)).toBe(names.length);
    }
    await eventually(() => text_of(page, ".accuracy")).toContain("6 of 6 pictures");
  });

  test("the engine computes on threads where they may start, and its kernels are profiled", async () => {
    await show("engine");
    const facts = await text_of(page, ".facts");
    expect(facts).toContain(await simd_level(page, "/vit-msn/"));
    expect(facts.includes("+threads")).toBe(browser.has_nested_workers);
    await press("Profile the kernels");
    await eventually(() => text_of(page, "#panel-engine table")).toContain("scaled_dot_product_attention");
  });

  test("pre-training is stopped, and its model is kept and used", async () => {
    await show("pretrain");
    await page.click("#panel-pretrain summary");
    const fields = {
      "Pictures a step": "8",
      "Passes over the pictures": "5000",
      Prototypes: "16",
      "Focal views": "1",
    };
    for (const [label, value] of Object.entries(fields)) await fill(label, value);
    await press("Start");
    const step = async () => Number((await text_of(page, ".run-numbers dd")).split(" of ")[0]);
    await eventually(step).toBeGreaterThan(2);
    await press("Stop and keep");
    const panel = () => text_of(page, "#panel-pretrain");
    await eventually(panel).toContain("Use it here");
    const stores_files = await page.run<boolean>(
      "try { return Boolean(await navigator.storage.getDirectory()); } catch { return false; }",
    );
    await eventually(panel).toContain(stores_files ? "Resume from step" : "not resumed");
    await press("Use it here");
    await eventually(() => text_of(page, ".chip")).toMatch(/^Pre-trained here/);
    // The page's last step: it changes the address, and the next test navigates.
    await eventually(() => count('#tab-teach[aria-selected="true"]')).toBe(1);
  });

  test("a later visit needs no server, and is isolated", async () => {
    server.close();
    await page.goto(server.url);
    await eventually(best).toBe("Ankle boot");
    expect(await page.run("return crossOriginIsolated")).toBe(true);
    await page.choose_files("#choose-pictures", image("8-bag"));
    await eventually(best).toBe("Bag");
    await page.screenshot(in_repository(`test/screenshots/studio-${engine}.png`));
  });
});
