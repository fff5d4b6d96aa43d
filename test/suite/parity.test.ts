import type { PretrainedOptions } from "vit-msn";
import { beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { differences, FIXTURES, inputs_of, load, main_output, TOLERANCES } from "../support/parity.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";
import { type DeviceKind, no_webgpu, open_device } from "../support/webgpu.ts";

const levels = (names: readonly string[], counts: readonly number[], worker = false) =>
  names.flatMap((level) => counts.map((num_threads) => ({ level, num_threads, worker })));
/** Pages are served without what threads need: theirs are in test/node/threads_page.test.ts. */
const THREADED = levels(["simd128+threads", "relaxed+threads"], [1, 2, 3]);
/** Without optional features and with all that there are, subgroups among them; with software's kernels and with GPUs'. */
const WEBGPU = (["default", "full", "as a GPU"] as const).map((limits) => ({
  level: "webgpu",
  num_threads: 1,
  worker: false,
  limits,
}));
/** Every engine that this runtime can run. */
const ENGINES: readonly (ReturnType<typeof levels>[number] & { limits?: DeviceKind })[] = [
  ...levels(["simd128", "relaxed"], [1]),
  ...levels(["relaxed"], [1], true),
  ...(typeof document === "undefined" ? [...THREADED, ...levels(["relaxed+threads"], [2], true)] : []),
  ...(no_webgpu === undefined ? WEBGPU : []),
];

function expect_within(found: ReadonlyMap<string, number>, tolerance: number): void {
  for (const [name, difference] of found) expect(difference, name).toBeLessThanOrEqual(tolerance);
}

describe.each(ENGINES)(
  "$level, $num_threads threads, worker: $worker, limits: $limits",
  { timeout: 120_000 },
  (run) => {
    const { level, num_threads, worker, limits } = run;
    const engine: PretrainedOptions = { device: "wasm", num_threads, worker };
    beforeAll(async () => {
      if (limits) engine.device = await open_device(limits);
      const file = `dist/vit_msn_${level.replace("+", "_")}.wasm`;
      engine.wasm = await WebAssembly.compile((await read_file(file)) as Uint8Array<ArrayBuffer>);
    });

    describe.each(["sdpa", "eager"] as const)("%s gives the reference's outputs", (attn_implementation) => {
      test.each(FIXTURES)("%s", async (name) => {
        const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
        const model = await load(name, { ...engine, attn_implementation });
        expect(model.engine_info).toMatchObject({ level, threads: num_threads, worker });
        const inputs = inputs_of(name, expected);
        expect_within(differences(await model.forward(inputs), expected), TOLERANCES.float32);
        // Asking for attentions computes them eagerly; the path that streams is compared without them.
        const plain = { ...inputs, output_attentions: false, output_hidden_states: false };
        const main = main_output(await model.forward(plain), expected);
        expect(max_difference(...main)).toBeLessThanOrEqual(TOLERANCES.float32);
        await model.dispose();
      });
    });

    describe.each(["float16", "bfloat16", "int8"] as const)("%s weights stay near the reference", (dtype) => {
      test.each(FIXTURES)("%s", async (name) => {
        const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
        const model = await load(name, { ...engine, dtype });
        expect(model.dtype).toBe(dtype);
        expect_within(
          differences(await model.forward(inputs_of(name, expected)), expected),
          TOLERANCES[dtype],
        );
        await model.dispose();
      });
    });
  },
);
