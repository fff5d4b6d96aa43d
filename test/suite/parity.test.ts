import type { PretrainedOptions } from "vit-msn";
import { beforeAll, describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";
import { DEVICE_KINDS, type DeviceKind, open_device } from "../support/gpu_devices.ts";
import { runnable_levels } from "../support/levels.ts";
import { FIXTURES, run_case, TOLERANCES, WAYS } from "../support/parity.ts";
import { no_webgpu } from "../support/webgpu.ts";

const levels = (names: readonly string[], counts: readonly number[], worker = false) =>
  names.flatMap((level) => counts.map((num_threads) => ({ level, num_threads, worker })));
/** Pages are served without what threads need: theirs are in test/node/threads_page.test.ts. */
const THREADED = levels(["simd128+threads", "relaxed+threads"], [1, 2, 3]);
/** The engine for V8's 256-bit vectors, which gives the same results without them; only Node chooses it. */
const WIDE = [...levels(["relaxed-wide"], [1]), ...levels(["relaxed-wide+threads"], [2])];
/** Without optional features and with all that there are, subgroups among them; with software's kernels and with GPUs'. */
const WEBGPU = DEVICE_KINDS.map((limits) => ({
  level: "webgpu",
  num_threads: 1,
  worker: false,
  limits,
}));
/** Every engine that this runtime can run. */
const ENGINES: readonly (ReturnType<typeof levels>[number] & { limits?: DeviceKind })[] = [
  ...levels(["simd128", "relaxed"], [1]),
  ...levels(["relaxed"], [1], true),
  ...(typeof document === "undefined"
    ? [...THREADED, ...WIDE, ...levels(["relaxed+threads"], [2], true)]
    : []),
  ...(no_webgpu === undefined ? WEBGPU : []),
];

const runnable: readonly string[] = await runnable_levels(...new Set(ENGINES.map(({ level }) => level)));

describe.each(ENGINES.filter(({ level }) => runnable.includes(level)))(
  "$level, $num_threads threads, worker: $worker, limits: $limits",
  (run) => {
    const { level, num_threads, worker, limits } = run;
    const engine: PretrainedOptions = { device: "wasm", num_threads, worker };
    beforeAll(async () => {
      if (limits) engine.device = await open_device(limits);
      const file = `dist/vit_msn_${level.replaceAll(/[-+]/g, "_")}.wasm`;
      engine.wasm = await WebAssembly.compile((await read_file(file)) as Uint8Array<ArrayBuffer>);
    });

    describe.each(WAYS)("$dtype by $attn_implementation is near the reference's outputs", (way) => {
      test.each(FIXTURES)("%s", async (name) => {
        const outcome = await run_case(name, way, engine);
        expect(outcome.info).toMatchObject({ level, threads: num_threads, worker });
        expect(outcome.dtype).toBe(way.dtype);
        for (const [output, difference] of Object.entries(outcome.differences))
          expect(difference, output).toBeLessThanOrEqual(TOLERANCES[way.dtype]);
      });
    });
  },
);
