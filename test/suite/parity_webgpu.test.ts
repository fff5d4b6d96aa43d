import { describe } from "vitest";
import { DEVICE_KINDS } from "../support/gpu_devices.ts";
import { test_parity } from "../support/parity_tests.ts";
import { no_webgpu } from "../support/webgpu.ts";

// Without optional features and with all that there are, subgroups among them; with software's kernels and with GPUs'.
describe.skipIf(no_webgpu !== undefined)("WebGPU", () => {
  test_parity(DEVICE_KINDS.map((limits) => ({ level: "webgpu", num_threads: 1, worker: false, limits })));
});
