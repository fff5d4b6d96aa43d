import { execFile } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
const child = join(root, "test/real_size/dispose_cycles.mjs");

const CYCLES = 200;
/** Cycles after which V8 has compiled what it will and its heap has its size. */
const WARM_UP = 50;
/** Bytes that the rest may add. An engine of the smaller model reserves over 1 MB: 150 that stay would be 150 MB. */
const BOUND = 24e6;

test.each(["test/fixtures/tiny", "models/fashion"])(
  `${CYCLES} cycles of load, forward and dispose don't grow the process: %s`,
  async (model) => {
    const { stdout } = await run(process.execPath, ["--expose-gc", child, join(root, model), String(CYCLES)]);
    const resident = (JSON.parse(stdout) as number[]).map((bytes) => Math.round(bytes / 1e6));
    console.log(`${model}: resident MB after each ten cycles: ${resident.join(" ")}`);
    // The collector frees engines in the background: medians even out who is caught in between.
    const warm = median(resident.slice(0, WARM_UP / 10));
    const last = median(resident.slice(-WARM_UP / 10));
    expect((last - warm) * 1e6).toBeLessThan(BOUND);
  },
);

test("a disposed model with threads frees its memory, even while it is referenced", async () => {
  const script = join(root, "test/real_size/disposed_memory.mjs");
  const { stdout } = await run(process.execPath, [
    "--expose-gc",
    script,
    join(root, "test/fixtures/tiny"),
    "2",
  ]);
  expect(JSON.parse(stdout)).toEqual({ started: 2, created: 1, left: 0, config: true });
});

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] as number;
}
