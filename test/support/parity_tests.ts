import type { PretrainedOptions } from "vit-msn";
import { beforeAll, describe, expect, test } from "vitest";
import { read_file } from "./files.ts";
import { type DeviceKind, open_device } from "./gpu_devices.ts";
import { FIXTURES, run_case, TOLERANCES, WAYS } from "./parity.ts";

/** An engine that the fixtures run on. */
export interface ParityEngine {
  level: string;
  num_threads: number;
  worker: boolean;
  /** Of a WebGPU engine's device. */
  limits?: DeviceKind;
}

/** Compares every output of every fixture with the reference's, in each dtype. */
export function test_parity(engines: readonly ParityEngine[]): void {
  describe.each(engines)(
    "$level, $num_threads threads, worker: $worker, limits: $limits",
    ({ level, num_threads, worker, limits }) => {
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
}
