import { spawn } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { read_tensors } from "../support/tensors.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const BOOT = join(root, "models/fashion/pictures/9-ankle-boot.png");
const KINDS: Record<number, string> = { 1: "trouser", 8: "bag", 9: "boot" };
const PIXELS = 28 * 28;

interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the built command line in the tests' folder. */
function few_shot(...args: string[]): Promise<Finished> {
  const child = spawn(process.execPath, [join(root, "dist/cli.js"), "few-shot", ...args], { cwd: folder });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (text: Buffer) => (output.stdout += text.toString()));
  child.stderr.on("data", (text: Buffer) => (output.stderr += text.toString()));
  child.stdin.end();
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, ...output })));
}

let folder: string;

/** pets/ has four images of each of three kinds, others/ eight. */
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-few-shot-"));
  const tensors = await read_tensors("models/fashion/test1000.safetensors");
  const pixels = tensors.get("pictures")?.data as Uint8Array;
  const labels = tensors.get("labels")?.data as Int32Array;
  for (const [kind, name] of Object.entries(KINDS)) {
    const indices = Array.from(labels.keys()).filter((i) => labels[i] === Number(kind));
    for (const [n, i] of indices.slice(0, 12).entries()) {
      const place = join(folder, n < 4 ? "clothes" : "others", name);
      await mkdir(place, { recursive: true });
      const raw = { width: 28, height: 28, channels: 1 } as const;
      await sharp(pixels.slice(i * PIXELS, (i + 1) * PIXELS), { raw })
        .png()
        .toFile(join(place, `${n}.png`));
    }
  }
});
afterAll(() => rm(folder, { recursive: true }));

test("teaches from a folder, evaluates twice, and classifies", async () => {
  const { code, stdout, stderr } = await few_shot(
    ...["--teach", "clothes", "--eval", "others", "--leave-one-out", BOOT, "--top-k", "1"],
  );
  expect(code).toBe(0);
  expect(stderr).toMatch(
    /logistic_regression on 12 images with 3 labels, penalty [\d.]+; training accuracy 100\.0 %/,
  );
  expect(stdout).toMatch(/^leave-one-out: \d+\.\d % \(\d+ of 12\)$/m);
  expect(stdout).toMatch(/^evaluation: \d+\.\d % \(\d+ of 24\)$/m);
  expect(stdout).toMatch(/^ {2}trouser +\d+\.\d % of 8/m);
  expect(stdout).toMatch(/ankle-boot\.png +\d\.\d{4} +boot$/m);
});

test("teaches from a list, of one class for each image alone", async () => {
  const lines = Object.values(KINDS).flatMap((name) =>
    [0, 1, 2, 3].map((n) => [`clothes/${name}/${n}.png`, name]),
  );
  await writeFile(
    join(folder, "list.csv"),
    `image,label\n${lines.map((line) => `${line.join(",")}\n`).join("")}`,
  );
  const { code, stdout, stderr } = await few_shot("--teach", "list.csv", "--eval", "others");
  expect([code, stderr]).toEqual([0, expect.stringMatching(/on 12 images with 3 labels/)]);
  expect(stdout).toMatch(/^evaluation: \d+\.\d % \(\d+ of 24\)$/m);
  const numbers = lines.map(([image], i) => `${image},${i + 0.5}\n`).join("");
  await writeFile(join(folder, "numbers.csv"), `image,label\n${numbers}`);
  expect(await few_shot("--teach", "numbers.csv", "--leave-one-out")).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/numbers\.csv has labels for regression; .*one class for each image/),
  });
});

test("evaluates draws of a few images, on the others", async () => {
  const args = ["--teach", "others", "--shots", "1,3", "--seeds", "4"];
  const { code, stdout } = await few_shot(...args);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^1 image of each label: \d+\.\d % ± \d+\.\d % over 4 draws$/m);
  expect(stdout).toMatch(/^3 images of each label: \d+\.\d % ± \d+\.\d % over 4 draws$/m);

  const json = await few_shot(...args, "--json");
  const [, one, three] = json.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).low_shot);
  for (const { accuracies, mean, std } of [one, three]) {
    expect(accuracies).toHaveLength(4);
    const average = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
    expect(mean).toBeCloseTo(average(accuracies), 12);
    const squares = accuracies.map((accuracy: number) => (accuracy - mean) ** 2);
    expect(std).toBeCloseTo(Math.sqrt((average(squares) * 4) / 3), 12);
    expect(mean).toBeGreaterThan(0.6);
  }
  // The same seeds draw the same images.
  expect((await few_shot(...args, "--json")).stdout).toBe(json.stdout);

  const few = await few_shot("--teach", "clothes", "--shots", "4");
  expect(few.code).toBe(1);
  expect(few.stderr).toContain(
    '"bag" has 4 images; drawing 4 and evaluating on others takes more. [INVALID_ARGUMENT]',
  );
});

test("saves a head, extends it, and exports a model that classify opens", async () => {
  const first = await few_shot("--teach", "clothes", "--save", "head", "--json");
  expect(first.code).toBe(0);
  expect(JSON.parse(first.stdout).fit).toMatchObject({ images: 12, labels: ["bag", "boot", "trouser"] });
  expect((await readdir(join(folder, "head"))).sort()).toEqual(["few_shot.json", "few_shot.safetensors"]);

  const used = await few_shot("--head", "head", BOOT, "--json", "--top-k", "1");
  expect(JSON.parse(used.stdout).results[0].label).toBe("boot");

  const more = await few_shot(
    ...["--head", "head", "--teach", "others", "--method", "nearest_centroid", "--export", "model", "--json"],
  );
  expect(more.code).toBe(0);
  expect(JSON.parse(more.stdout).fit).toMatchObject({ images: 36, method: "nearest_centroid" });
  expect((await readdir(join(folder, "model"))).sort()).toEqual([
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
  ]);
  const classify = spawn(
    process.execPath,
    [join(root, "dist/cli.js"), "classify", BOOT, "-m", "model", "--json"],
    {
      cwd: folder,
    },
  );
  let text = "";
  for await (const piece of classify.stdout) text += piece;
  expect(JSON.parse(text).results[0].label).toBe("boot");
});

test("chooses a penalty by cross-validation", async () => {
  const { code, stdout } = await few_shot(
    "--teach",
    "clothes",
    "--penalty",
    "auto",
    "--save",
    "auto",
    "--json",
  );
  expect(code).toBe(0);
  expect(JSON.parse(stdout).fit.cross_validation).toHaveLength(7);
});

test("a folder of one class can't be learned from, but evaluated on", async () => {
  await cp(join(folder, "clothes/bag"), join(folder, "single/bag"), { recursive: true });
  const single = await few_shot("--teach", "single", "--leave-one-out");
  expect(single).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/single has images of only one class \(bag\)/),
  });
  const evaluated = await few_shot("--teach", "clothes", "--eval", "single", "--json");
  expect(evaluated.code).toBe(0);
});

test("reports an image that can't be read and a class without images, learns from the others, and exits with 1", async () => {
  await cp(join(folder, "clothes"), join(folder, "flawed"), { recursive: true });
  await mkdir(join(folder, "flawed/hat"));
  await writeFile(join(folder, "flawed/bag/broken.png"), "<html>");
  const { code, stdout, stderr } = await few_shot("--teach", "flawed", "--leave-one-out", "--json");
  expect(code).toBe(1);
  expect(stderr).toMatch(/no image of the class hat; skipped/);
  expect(stderr).toMatch(/broken\.png.*\[INVALID_IMAGE\]/);
  expect(JSON.parse(stdout.split("\n")[0] as string).fit.images).toBe(12);
});

test.each([
  [[], /--teach/],
  [["--head", "head"], /images to classify/],
  [["--teach", "clothes", BOOT, "--method", "svm"], /knn/],
  [["--teach", "clothes", BOOT, "--batch-size", "0"], /positive integer/],
])("%o is wrong usage: exit code 2", async (args, words) => {
  const { code, stdout, stderr } = await few_shot(...args);
  expect([code, stdout]).toEqual([2, ""]);
  expect(stderr).toMatch(words);
});

test.each([
  [["--teach", "nowhere", BOOT], /nowhere.*\[NOT_FOUND\]/],
  [["--teach", "clothes", BOOT, "--penalty", "small"], /"few".*\[INVALID_ARGUMENT\]/],
  [["--head", "clothes", BOOT], /few_shot\.json.*\[NOT_FOUND\]/],
])("%o is a one-sentence error: exit code 1", async (args, words) => {
  const { code, stdout, stderr } = await few_shot(...args);
  expect([code, stdout]).toEqual([1, ""]);
  expect(stderr).toMatch(words);
});

test("--help goes to standard output", async () => {
  const { code, stdout } = await few_shot("--help");
  expect(code).toBe(0);
  expect(stdout).toContain("--leave-one-out");
});
