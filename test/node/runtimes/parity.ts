// Run by Deno: every fixture on a WebGPU device of the kind given, a line of JSON for each case.
// Usage: parity.ts KIND
import process from "node:process";
import { type DeviceKind, open_device } from "../../support/gpu_devices.ts";
import { FIXTURES, run_case, WAYS } from "../../support/parity.ts";

const device = await open_device(process.argv[2] as DeviceKind);
for (const way of WAYS) {
  for (const name of FIXTURES) {
    const found = await run_case(name, way, { device }).catch((error: unknown) => ({ error: String(error) }));
    console.log(JSON.stringify({ name, way, ...found }));
  }
}
