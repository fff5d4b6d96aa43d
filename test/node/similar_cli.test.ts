import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { cos_sim } from "vit-msn";
import { afterAll, beforeAll, expect, test } from "vitest";
import { root, vit_msn } from "../support/cli.ts";

let folder: string;
let photos: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-similar-"));
  photos = join(folder, "photos");
  await mkdir(photos);
  for (const name of ["0-t-shirt-top", "1-trouser", "8-bag", "9-ankle-boot"])
    await copyFile(join(root, `models/fashion/pictures/${name}.png`), join(photos, `${name}.png`));
  await copyFile(join(photos, "8-bag.png"), join(photos, "a copy.png"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

test("the most similar images of a query, as their embeddings say", async () => {
  const query = join(photos, "9-ankle-boot.png");
  const { code, stdout } = await vit_msn(["similar", photos, "--query", query, "--top_k", "2", "--json"]);
  expect(code).toBe(0);
  const { image, similar } = JSON.parse(stdout);
  expect([image, similar.length, similar[0].name]).toEqual([query, 2, query]);
  expect(similar[0].score).toBeCloseTo(1, 5);
  const embedded = await vit_msn(["embed", photos, query]);
  const rows = embedded.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const own = rows.at(-1).embedding;
  const scores = rows.slice(0, -1).map(({ embedding }) => cos_sim(own, embedding));
  expect(similar[1].score).toBeCloseTo(scores.sort((a, b) => b - a)[1] as number, 5);
});

test("near duplicates, as text", async () => {
  const { code, stdout } = await vit_msn(["similar", photos, "--duplicates", "0.9999"]);
  expect(code).toBe(0);
  const [score, ...names] = stdout.trimEnd().split("\t");
  expect([score, ...names.map((name) => basename(name))]).toEqual(["1.0000", "8-bag.png", "a copy.png"]);
});

test("images that can't be read are reported, and the others searched", async () => {
  const broken = join(photos, "broken.png");
  await writeFile(broken, "no image");
  const missing = join(folder, "missing.png");
  const query = join(photos, "8-bag.png");
  const { code, stdout, stderr } = await vit_msn(["similar", photos, "--query", missing, "--query", query]);
  await rm(broken);
  expect(code).toBe(1);
  expect(stderr).toMatch(/broken\.png.*\[INVALID_IMAGE\]/);
  expect(stderr).toMatch(/missing\.png.*\[NOT_FOUND\]/);
  expect(stdout.split("\n").slice(0, 3)).toEqual([
    query,
    `  1.0000  ${query}`,
    `  1.0000  ${join(photos, "a copy.png")}`,
  ]);
});

test.each<[string[], RegExp]>([
  [["x.png"], /nothing to find: add --query IMAGE or --duplicates/],
  [["--query", "x.png"], /no images given/],
  [["x.png", "--duplicates", "2"], /expected a number from -1 to 1/],
  [["x.png", "--query", "y.png", "--top-k", "0"], /expected a positive integer/],
])("%o is wrong usage", async (args, words) => {
  const { code, stderr } = await vit_msn(["similar", ...args]);
  expect([code, stderr]).toEqual([2, expect.stringMatching(words)]);
});
