import { expect, test } from "vitest";
import type { AdamWStep, LarsStep, SgdStep } from "../../ts/engine/training_engine.ts";
import { load_wasm_module } from "../../ts/engine/wasm/load_wasm.ts";
import { create_wasm_engine } from "../../ts/engine/wasm/wasm_engine.ts";
import { read_file } from "../support/files.ts";
import { runnable_levels } from "../support/levels.ts";

interface Case {
  optimizer: "adamw" | "sgd" | "lars";
  options: Omit<AdamWStep, "step"> & Omit<SgdStep, "first"> & LarsStep;
  parameter: number[];
  gradients: number[][];
  /** After each step, by PyTorch. */
  parameters: number[][];
}

test.each(await runnable_levels("simd128", "relaxed"))(
  "optimisers step as PyTorch's on %s",
  async (level) => {
    const bytes = new Uint8Array(await read_file(`dist/vit_msn_${level}.wasm`));
    const engine = create_wasm_engine(await load_wasm_module(bytes));
    const fixture = await read_file("test/fixtures/optimizers.json");
    const { cases } = JSON.parse(new TextDecoder().decode(fixture)) as { cases: Case[] };
    expect(cases.length).toBeGreaterThan(6);
    for (const { optimizer, options, parameter: start, gradients, parameters } of cases) {
      const tensor = (values: readonly number[]) => engine.tensor(Float32Array.from(values), [values.length]);
      const zeros = start.map(() => 0);
      const [parameter, m, v] = [tensor(start), tensor(zeros), tensor(zeros)];
      for (const [index, gradient] of gradients.entries()) {
        const g = tensor(gradient);
        if (optimizer === "adamw") engine.adamw_step(parameter, g, m, v, { ...options, step: index + 1 });
        else if (optimizer === "lars") engine.lars_step(parameter, g, m, options);
        else {
          const buffer = options.momentum === 0 ? undefined : m;
          engine.sgd_step(parameter, g, buffer, { ...options, first: index === 0 });
        }
        const actual = await engine.read(parameter);
        for (const [i, expected] of (parameters[index] as number[]).entries()) {
          expect(Math.abs((actual[i] as number) - expected)).toBeLessThan(2e-6 * (1 + Math.abs(expected)));
        }
      }
    }
    await engine.dispose();
  },
);
