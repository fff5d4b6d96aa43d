import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { EngineInfo, PretrainedOptions } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TOLERANCES } from "../support/parity.ts";
import { bun, deno, find_lavapipe, newest_node, type Runtime } from "../support/runtimes.ts";
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
  await cp(join(root, "test/node/runtimes"), project, { recursive: true });
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

const lavapipe = await find_lavapipe();
if (lavapipe === undefined) console.log("Deno's WebGPU is not tested: Mesa's lavapipe isn't installed.");

test.skipIf(lavapipe === undefined)(
  "Deno gives the reference's logits on WebGPU",
  { timeout: 60_000 },
  async () => {
    const choices: readonly (PretrainedOptions & { dtype: keyof typeof TOLERANCES })[] = [
      { dtype: "float32", attn_implementation: "sdpa" },
      { dtype: "float32", attn_implementation: "eager" },
      { dtype: "float16", attn_implementation: "sdpa" },
    ];
    const names = ["tiny", "odd_heads", "interpolate"];
    // With the kernels of GPUs: float16 is computed in float16 and int8 in bytes.
    const narrow = (["float16", "int8"] as const).map((dtype) => ({
      dtype,
      attn_implementation: "sdpa" as const,
    }));
    const cases = names.flatMap((name) => [
      ...choices.map((options) => ({ name, options, as_a_gpu: false })),
      ...narrow.map((options) => ({ name, options, as_a_gpu: true })),
    ]);
    const expected = await Promise.all(
      cases.map(({ name }) => read_tensors(`test/fixtures/${name}/expected.safetensors`)),
    );
    const runs = cases.map(({ name, options, as_a_gpu }, i) => {
      const { data, dims } = (expected[i] as Tensors).get("in.pixel_values") as FixtureTensor;
      return {
        fixture: join(root, "test/fixtures", name),
        pixel_values: Array.from(data as Float32Array),
        dims,
        interpolate_pos_encoding: name === "interpolate",
        as_a_gpu,
        options,
      };
    });
    await writeFile(join(project, "webgpu.json"), JSON.stringify(runs));
    const runtime = await deno("--unstable-webgpu");
    const printed = await runtime.run("webgpu.mjs", ["webgpu.json"], project, { VK_ICD_FILENAMES: lavapipe });
    const found: { device: string; info: EngineInfo; logits: number[] }[] = JSON.parse(printed);
    expect(found).toHaveLength(cases.length);
    for (const [i, { device, info, logits }] of found.entries()) {
      const { name, options, as_a_gpu } = cases[i] as (typeof cases)[number];
      const label = `${name} ${options.dtype} ${options.attn_implementation}`;
      expect([device, info.level], label).toEqual(["webgpu", "webgpu"]);
      expect(info.adapter?.name, label).toMatch(as_a_gpu ? /In disguise/ : /llvmpipe/);
      const difference = max_difference(logits, expected[i]?.get("out.logits")?.data as Float32Array);
      expect(difference, label).toBeLessThanOrEqual(TOLERANCES[options.dtype]);
    }
  },
);

const node = await newest_node();
if (node === undefined) console.log("The newest Node is not tested: build.sh test installs it into .tools/.");
else console.log(`The newest Node is ${node.version}.`);

const RUNTIMES: [string, () => Promise<Runtime>][] = [
  ["Deno", deno],
  ["Bun", bun],
  ...(node ? [["The newest Node", async () => node] as [string, () => Promise<Runtime>]] : []),
];

describe.each(RUNTIMES)("%s", (_, find) => {
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
