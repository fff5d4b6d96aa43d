import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { EngineInfo, PretrainedOptions } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { find_lavapipe } from "../../scripts/browsers.mjs";
import { DEVICE_KINDS } from "../support/gpu_devices.ts";
import { type CaseOutcome, FIXTURES, TOLERANCES, WAYS, type Way } from "../support/parity.ts";
import { bun, deno, newest_node, type Runtime } from "../support/runtimes.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";

// The built package in other runtimes than this one, found by its exports as a project's dependency.

const root = fileURLToPath(new URL("../../", import.meta.url));
const FIXTURE = "tiny";
const IMAGES = { "8-bag.png": "Bag", "9-ankle-boot.png": "Ankle boot", "1-trouser.png": "Trouser" };

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
    images: Object.keys(IMAGES).map((name) => join(root, "models/fashion/pictures", name)),
    options,
  };
  const file = `inputs-${runtime.name}-${options.num_threads}-${options.worker}.json`;
  await writeFile(join(project, file), JSON.stringify(inputs));
  return JSON.parse(await runtime.run("program.mjs", [file], project)) as Outcome;
}

const lavapipe = find_lavapipe();
if (lavapipe === undefined) console.log("Deno's WebGPU is not tested: Mesa's lavapipe isn't installed.");

/** A device that is taken for a GPU runs GPUs' kernels: float16 in float16, int8 in bytes. */
describe.skipIf(lavapipe === undefined).each(DEVICE_KINDS)("Deno on WebGPU, limits: %s", (kind) => {
  const outcomes = new Map<string, CaseOutcome>();
  // What all cases take; lavapipe compiles their kernels.
  beforeAll(async () => {
    const program = join(root, "test/node/runtimes/parity.ts");
    const variables = { VK_ICD_FILENAMES: lavapipe };
    const runtime = await deno("--unstable-webgpu");
    const lines = (await runtime.run(program, [kind], project, variables, 240_000)).trim().split("\n");
    for (const { name, way, ...outcome } of lines.map((line) => JSON.parse(line)))
      outcomes.set(key_of(name, way), outcome);
  }, 240_000);

  describe.each(WAYS)("$dtype by $attn_implementation is near the reference's outputs", (way) => {
    test.each(FIXTURES)("%s", (name) => {
      const outcome = outcomes.get(key_of(name, way));
      expect(outcome).toMatchObject({ dtype: way.dtype, info: { level: "webgpu" } });
      const { adapter } = (outcome as CaseOutcome).info;
      expect(adapter?.name).toMatch(kind === "as a GPU" ? /In disguise/ : /llvmpipe/);
      // Deno has no subgroups as yet.
      const features = kind === "default" ? [] : ["shader-f16", "timestamp-query"];
      expect(adapter?.features).toEqual(features);
      for (const [output, difference] of Object.entries((outcome as CaseOutcome).differences))
        expect(difference, output).toBeLessThanOrEqual(TOLERANCES[way.dtype]);
    });
  });
});

function key_of(name: string, { dtype, attn_implementation }: Way): string {
  return `${name} ${dtype} ${attn_implementation}`;
}

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
  ])("gives the reference's logits and the bundled model's classes, %o", async (options) => {
    const { num_threads: n, worker } = options;
    const expected = await read_tensors(`test/fixtures/${FIXTURE}/expected.safetensors`);
    const { info, logits, classes, warnings } = await classify_in(await find(), options, expected);
    expect(max_difference(logits, expected.get("out.logits")?.data as Float32Array)).toBeLessThan(1e-4);
    expect(classes).toEqual(Object.values(IMAGES));
    expect([info.threads, info.worker]).toEqual([n, worker]);
    expect(info.level).toMatch(n === 1 ? /^(relaxed|simd128)$/ : /^(relaxed|simd128)\+threads$/);
    if (info.level.startsWith("simd128")) expect(info.reasons.join(" ")).toContain("isn't fused");
    expect(warnings).toEqual([]);
  });
});
