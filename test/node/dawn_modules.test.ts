import { readFile } from "node:fs/promises";
import { afterAll, describe, expect, test, vi } from "vitest";
import { create } from "webgpu";
import { Tensor, ViTMSNModel } from "../../ts/index.ts";
import { describe_as_gpu } from "../support/gpu_devices.ts";

// Browsers' compiler on the kernels of GPUs that no software adapter here has the features for: Dawn's null backend has all
// features, checks every module and computes nothing. What lavapipe runs was compiled by naga, which is less strict.

// An engine's self-test reads results, and there are none: it always passes.
vi.mock(import("../../ts/engine/generated/webgpu/glue.js"), async (original) => {
  const actual = await original();
  const create_glue: typeof actual.default = (scope) => ({
    ...actual.default(scope),
    self_test: () => Promise.resolve([]),
  });
  return { ...actual, default: create_glue };
});
const wasm = await readFile("dist/vit_msn_webgpu.wasm");

const gpu = create(["backend=null"]);
const devices: GPUDevice[] = [];
afterAll(() => {
  for (const device of devices) device.destroy();
});

/** A device of the null backend that is taken for a GPU, and the modules that it compiled. */
async function open(features: readonly GPUFeatureName[]) {
  const adapter = (await gpu.requestAdapter()) as GPUAdapter;
  const device = await adapter.requestDevice({ requiredFeatures: [...features] });
  devices.push(device);
  describe_as_gpu(device);
  const modules: string[] = [];
  const compile = device.createShaderModule.bind(device);
  device.createShaderModule = (descriptor) => {
    modules.push(descriptor.code);
    return compile(descriptor);
  };
  return { device, modules };
}

describe.each<[string, readonly GPUFeatureName[]]>([
  ["float16", ["shader-f16"]],
  ["float16 and subgroups", ["shader-f16", "subgroups"]],
])("with %s", (_, features) => {
  // Rows of whole vectors, and others.
  test.each([64, 60, 54])("Dawn takes every kernel of a float16 model of width %d", async (width) => {
    const { device, modules } = await open(features);
    const config = {
      hidden_size: width,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      intermediate_size: 2 * width,
      image_size: 16,
      patch_size: 4,
    };
    const model = await ViTMSNModel.from_config(config, { device, dtype: "float16", wasm });
    const pixel_values = new Tensor("float32", new Float32Array(768), [1, 3, 16, 16]);
    await model.forward({ pixel_values, output_attentions: true });
    await model.forward({ pixel_values });
    await model.dispose();
    const halves = modules.filter((code) => /^alias \w+ = f16;/m.test(code));
    // Layer norms, fused attention, and the layer before another; of odd widths nothing is kept so but the last.
    expect(halves.length).toBe(width % 4 === 0 ? 3 : 1);
    for (const code of [...modules]) {
      device.pushErrorScope("validation");
      const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
      expect([(await device.popErrorScope())?.message, messages.length], code.slice(0, 200)).toEqual([
        undefined,
        0,
      ]);
    }
  });
});
