import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { pipeline, RawImage } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  ENGINES,
  simd_level,
  start_browser,
  type TestBrowser,
  type TestPage,
  text_of,
} from "../support/browsers/browsers.ts";
import { stated_column } from "../support/guide_tables.ts";
import { type StaticServer, serve } from "../support/static_server.ts";
import { read_tensors } from "../support/tensors.ts";

// examples/page.html on a plain static server, and the bundled model's scores of its ten images.

const in_repository = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const FOLDER = "models/fashion/pictures";
/** Of scores: engines round differently, and the guide states five digits. */
const TOLERANCE = 1e-5;

/** An image's scores, the best first. */
type Scores = { label: string; score: number }[];

let server: StaticServer;
let names: string[];
let reference: Map<string, number>[];
beforeAll(async () => {
  server = await serve(in_repository("."));
  names = (await readdir(in_repository(FOLDER))).sort();
  reference = await reference_scores();
});
afterAll(() => server.close());

/** Until what is read is as expected; the machine may be busy. */
const eventually = <T>(read: () => T) => expect.poll(read, { timeout: 120_000 });

describe.each(ENGINES)("%s", (engine) => {
  let browser: TestBrowser;
  let page: TestPage;
  beforeAll(async () => {
    browser = await start_browser(engine);
    page = await browser.open();
  });
  afterAll(() => browser.close());

  const status = () => text_of(page, "[role=status]");
  const rows = () => text_of(page, "ol");

  test("a plain page loads the engine and the bundled model, and classifies a chosen image", async () => {
    server.asked.length = 0;
    await page.goto(`${server.url}examples/page.html`);
    await eventually(status).toMatch(/^Ready/);
    const asked = [...server.asked];
    expect(asked.filter((path) => path.endsWith(".wasm"))).toEqual([
      `dist/vit_msn_${await simd_level(page)}.wasm`,
    ]);
    expect(asked).toContain("dist/models/fashion/model.safetensors");
    await page.choose_files("input", in_repository(`${FOLDER}/9-ankle-boot.png`));
    await eventually(status).toMatch(/^Done in/);
    expect(await rows()).toMatch(/^Ankle boot/);
    expect(await page.run("return document.querySelectorAll('li').length")).toBe(5);
    await page.screenshot(in_repository(`test/screenshots/page-${engine}.png`));
  });

  test("a file that isn't an image is a one-sentence error, and the page still works", async () => {
    await page.choose_files("input", in_repository("LICENSE"));
    await eventually(status).toMatch(/LICENSE/);
    await page.choose_files("input", in_repository(`${FOLDER}/8-bag.png`));
    await eventually(rows).toMatch(/^Bag/);
  });

  test("the page gives the ten images the scores in the guide", async () => {
    const program = `
      const { pipeline } = await import("/dist/index.web.js");
      const classify = await pipeline("image-classification");
      const found = await classify(arg, { top_k: 10 });
      await classify.dispose();
      return found;`;
    const paths = names.map((name) => `/${FOLDER}/${name}`);
    await check(engine, await page.run<Scores[]>(program, paths));
  });
});

test("Node gives the ten images the scores in the guide", async () => {
  const classify = await pipeline("image-classification");
  const paths = names.map((name) => in_repository(`${FOLDER}/${name}`));
  const found = (await classify(paths, { top_k: 10 })) as Scores[];
  await classify.dispose();
  await check("Node", found);
});

/** @param found of the images in the order of `names`. */
async function check(runtime: string, found: readonly Scores[]): Promise<void> {
  const stated = await stated_column("score of the best class", runtime);
  const best = found.map((scores) => scores[0] as Scores[number]);
  console.log(runtime, best.map(({ label, score }) => `${label} ${score.toFixed(5)}`).join(", "));
  for (const [i, name] of names.entries()) {
    const { label, score } = best[i] as Scores[number];
    const expected = reference[i] as Map<string, number>;
    expect([...expected][0]?.[0], name).toBe(label);
    for (const other of found[i] as Scores)
      expect(Math.abs(other.score - (expected.get(other.label) as number)), name).toBeLessThan(TOLERANCE);
    const [, said, number] = /^(.+) ([\d.]+)$/.exec(stated.get(name) ?? "") ?? [];
    expect(said, name).toBe(label);
    expect(Math.abs(score - Number(number)), name).toBeLessThan(TOLERANCE);
  }
}

/** PyTorch's scores of the images by label, the best first: the images are among the thousand of models/fashion. */
async function reference_scores(): Promise<Map<string, number>[]> {
  const pixels = (await read_tensors("models/fashion/test1000.safetensors")).get("pictures")
    ?.data as Uint8Array;
  const logits = (await read_tensors("models/fashion_msn/logits1000.safetensors")).get("out.logits")
    ?.data as Float32Array;
  const config = await readFile(in_repository("models/fashion_msn/classifier/config.json"), "utf8");
  const labels: string[] = Object.values(JSON.parse(config).id2label);
  return Promise.all(
    names.map(async (name) => {
      const { data, channels } = await RawImage.read(in_repository(`${FOLDER}/${name}`));
      const grey = data.filter((_, i) => i % channels === 0);
      const at = Buffer.from(pixels).indexOf(Buffer.from(grey)) / grey.length;
      const exps = labels.map((_, i) => Math.exp(logits[at * labels.length + i] as number));
      const sum = exps.reduce((a, b) => a + b);
      const scores = labels.map((label, i): [string, number] => [label, (exps[i] as number) / sum]);
      return new Map(scores.sort(([, a], [, b]) => b - a));
    }),
  );
}
