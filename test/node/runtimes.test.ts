import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { EngineInfo, PretrainedOptions } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bun, deno, type Runtime } from "../support/runtimes.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";

// The built package in other runtimes than this one, found by its exports as a project's dependency.

const root = fileURLToPath(new URL("../../", import.meta.url));
const FIXTURE = "tiny";
const PICTURES = { "8-bag.png": "Bag", "9-ankle-boot.png": "Ankle boot", "1-trouser.png": "Trouser" };

type Tensors = Map<string, FixtureTensor>;

interface Outcome {
  info: EngineInfo;
  logits: number[];
  classes: string[];
  warnings: string[];
}

let project: string;
beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), "vit-msn-runtimes-"));
  await writeFile(join(project, "package.json"), '{ "name": "empty", "private": true, "type": "module" }');
  await mkdir(join(project, "node_modules"));
  await symlink(root, join(project, "node_modules/vit-msn"), "junction");
  await cp(join(root, "test/node/runtimes/program.mjs"), join(project, "program.mjs"));
});
afterAll(() => rm(project, { recursive: true, force: true }));

/** What the program saw. */
async function classify_in(
  runtime: Runtime,
  options: PretrainedOptions,
  expected: Tensors,
): Promise<Outcome> {
  const { data, dims } = expected.get("in.pixel_values") as FixtureTensor;
  const inputs = {
    fixture: join(root, "test/fixtures", FIXTURE),
    pixel_values: Array.from(data as Float32Array),
    dims,
    pictures: Object.keys(PICTURES).map((name) => join(root, "models/fashion/pictures", name)),
    options,
  };
  const file = `inputs-${runtime.name}-${options.num_threads}-${options.worker}.json`;
  await writeFile(join(project, file), JSON.stringify(inputs));
  return JSON.parse(await runtime.run("program.mjs", [file], project)) as Outcome;
}

describe.each([
  ["Deno", deno],
  ["Bun", bun],
] as const)("%s", (_, find) => {
  test.each([
    { num_threads: 1, worker: false },
    { num_threads: 2, worker: false },
    { num_threads: 2, worker: true },
  ])("gives the reference's logits and the carried model's classes, %o", async (options) => {
    const { num_threads: n, worker } = options;
    const expected = await read_tensors(`test/fixtures/${FIXTURE}/expected.safetensors`);
    const { info, logits, classes, warnings } = await classify_in(await find(), options, expected);
    expect(max_difference(logits, expected.get("out.logits")?.data as Float32Array)).toBeLessThan(1e-4);
    expect(classes).toEqual(Object.values(PICTURES));
    expect([info.threads, info.worker]).toEqual([n, worker]);
    expect(info.level).toMatch(n === 1 ? /^(relaxed|simd128)$/ : /^(relaxed|simd128)\+threads$/);
    if (info.level.startsWith("simd128")) expect(info.reasons.join(" ")).toContain("isn't fused");
    expect(warnings).toEqual([]);
  });
});
