import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { env, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { afterEach, describe, expect, test, vi } from "vitest";
import { read_file } from "../support/files.ts";
import { skipped } from "../support/skips.ts";

const run = promisify(execFile);
const child = fileURLToPath(new URL("./threads/child.mjs", import.meta.url));

/** Large enough that every layer is shared. */
const CONFIG = { hidden_size: 192, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 768 };
const warn = env.warn;
afterEach(() => {
  env.warn = warn;
});

function images(batch: number): Tensor<"float32"> {
  const size = batch * 3 * 224 * 224;
  const data = Float32Array.from({ length: size }, (_, i) => Math.sin(i * 0.7));
  return new Tensor("float32", data, [batch, 3, 224, 224]);
}

/** Ends only what hangs, before the test itself times out. */
const TIMEOUT_MS = 170_000;

/** What a scenario of threads/child.mjs saw; it must end by itself. */
async function scenario<T>(name: string): Promise<T> {
  const args = [...process.execArgv, child, name];
  const { stdout } = await run(process.execPath, args, { timeout: TIMEOUT_MS });
  return JSON.parse(stdout) as T;
}

describe("an engine with threads", () => {
  test.each([
    ["sdpa", "float32"],
    ["eager", "float16"],
  ] as const)(
    "gives the same bits with 1, 2, 3 and 8 of them: %s, %s",
    async (attn_implementation, dtype) => {
      const pixel_values = images(2);
      const outputs: Float32Array[] = [];
      for (const num_threads of [1, 2, 3, 8]) {
        const options = { num_threads, attn_implementation, dtype };
        const model = await ViTMSNForImageClassification.from_config(CONFIG, options);
        expect(model.engine_info.threads).toBe(num_threads);
        expect(model.engine_info.level).toMatch(num_threads === 1 ? /^(simd128|relaxed)$/ : /\+threads$/);
        const { logits, hidden_states = [] } = await model.forward({
          pixel_values,
          output_hidden_states: true,
        });
        outputs.push(
          Float32Array.of(...logits.data, ...(hidden_states.at(-1)?.data.subarray(0, 5000) ?? [])),
        );
        await model.dispose();
      }
      for (const output of outputs) expect(output).toEqual(outputs[0]);
    },
  );

  test("passed in without threads, it runs on one and reports it", async () => {
    env.warn = vi.fn();
    const wasm = new Uint8Array(await read_file("dist/vit_msn_simd128.wasm"));
    const model = await ViTMSNForImageClassification.from_config(CONFIG, { num_threads: 2, wasm });
    expect(model.engine_info).toMatchObject({ level: "simd128", threads: 1 });
    expect(model.engine_info.reasons.join(" ")).toContain("vit_msn_relaxed_threads.wasm");
    expect(env.warn).toHaveBeenCalledWith(expect.stringContaining("the model runs on 1."));
    await model.dispose();
  });

  test("ends its workers when it is disposed", async () => {
    expect(await scenario("cycles")).toEqual({ started: 40, ended: 40 });
  });

  test.each([
    ["killed", /^ENGINE_DEAD: .*threads was lost/],
    ["killed_engine", /^ENGINE_DEAD: .*Worker was lost/],
  ])("answers no more once a worker was %s; other models are not affected", async (name, dead) => {
    const [during, after, other] = await scenario<string[]>(name);
    expect(during).toMatch(/^(done$|ENGINE_DEAD: )/);
    expect(after).toMatch(dead);
    expect(other).toBe("done");
  });

  test("ends its workers when the model is no longer referenced", async () => {
    const { started, ended } = await scenario<Record<string, number>>("dropped");
    expect(started).toBe(9);
    expect(ended).toBe(9);
  });

  test.skipIf(skipped(process.platform !== "linux", "only Linux lists a process's threads"))(
    "ends the threads of an engine's Worker with it",
    async () => {
      const { before = 0, after } = await scenario<Record<string, number>>("nested");
      expect(after).toBeLessThanOrEqual(before);
    },
  );

  test("may be disposed in the middle of a forward pass", async () => {
    const { forward, started, ended } = await scenario<Record<string, unknown>>("disposed");
    expect(forward).toMatch(/^DISPOSED: /);
    expect([started, ended]).toEqual([2, 2]);
  });

  test("lets the process end where it isn't disposed", async () => {
    expect(await scenario("forgotten")).toEqual([3, 3]);
  });

  test("runs on one thread where workers can't start", async () => {
    const { threads, reasons, warnings } = await scenario<{
      threads: number;
      reasons: string[];
      warnings: string[];
    }>("no_workers");
    expect(threads).toBe(1);
    expect(reasons.join(" ")).toContain("Workers can't start here: it was ended.");
    expect(warnings).toHaveLength(1);
  });

  test("runs on this thread where its engine can't have a Worker", async () => {
    const { worker, threads, reasons, warnings } = await scenario<{
      worker: boolean;
      threads: number;
      reasons: string[];
      warnings: string[];
    }>("no_engine_worker");
    expect([worker, threads]).toEqual([false, 1]);
    expect(reasons[0]).toContain("can't run in a Worker here: it was ended.");
    expect(warnings[0]).toContain("worker is true");
  });

  test("gives training the same bits with every number of threads", async () => {
    const [alone, ...others] =
      await scenario<{ threads: number; losses: number[]; logits: number[] }[]>("trained");
    expect(alone?.losses).toContainEqual(expect.any(Number));
    expect(others.map(({ threads }) => threads)).toEqual([2, 3]);
    for (const { losses, logits } of others) {
      expect(losses).toEqual(alone?.losses);
      expect(logits).toEqual(alone?.logits);
    }
  });

  test("doesn't collapse with many more threads than cores", async () => {
    const { 1: alone = 0, 24: many = 0 } = await scenario<Record<number, number>>("oversubscribed");
    expect(many).toBeLessThan(4 * alone);
  });
});
