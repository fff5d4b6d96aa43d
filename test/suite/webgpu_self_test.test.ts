import { env, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { afterEach, describe, expect, test } from "vitest";
import { open_device, view_of } from "../support/gpu_devices.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

// Devices that compute wrong results, or whose driver refuses kernels, are simulated.

const CONFIG = {
  hidden_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  intermediate_size: 32,
  image_size: 16,
  patch_size: 4,
  num_labels: 3,
};
const PIXELS = new Tensor(
  "float32",
  Float32Array.from({ length: 768 }, (_, i) => Math.sin(i)),
  [1, 3, 16, 16],
);

const { gpu } = env.webgpu;
afterEach(() => {
  env.webgpu.gpu = gpu;
});

type Dtype = "float32" | "float16" | "int8";

async function logits_on(device: "wasm" | GPUDevice, dtype: Dtype = "float32") {
  const model = await ViTMSNForImageClassification.from_config(CONFIG, { device, dtype, seed: 5 });
  const { logits } = await model.forward({ pixel_values: PIXELS });
  const { reasons } = model.engine_info;
  await model.dispose();
  return { logits: logits.data, reasons };
}

/** The text of pipelines, by object. */
class Texts {
  readonly #modules = new WeakMap<GPUShaderModule, string>();
  readonly #pipelines = new WeakMap<GPUComputePipeline, string>();

  /** The members of a device that note the text of modules and pipelines. */
  members(device: GPUDevice) {
    const note = (pipeline: GPUComputePipeline, { compute }: GPUComputePipelineDescriptor) => {
      this.#pipelines.set(pipeline, this.of_module(compute.module));
      return pipeline;
    };
    return {
      createShaderModule: (descriptor: GPUShaderModuleDescriptor) => {
        const module = device.createShaderModule(descriptor);
        this.#modules.set(module, descriptor.code);
        return module;
      },
      createComputePipeline: (descriptor: GPUComputePipelineDescriptor) =>
        note(device.createComputePipeline(descriptor), descriptor),
      createComputePipelineAsync: async (descriptor: GPUComputePipelineDescriptor) =>
        note(await device.createComputePipelineAsync(descriptor), descriptor),
    };
  }

  of_module(module: GPUShaderModule): string {
    return this.#modules.get(module) ?? "";
  }

  of(pipeline: GPUComputePipeline): string {
    return this.#pipelines.get(pipeline) ?? "";
  }
}

/** A device on which kernels with this text do nothing from their second run on. */
function forgetful(device: GPUDevice, text: RegExp): GPUDevice {
  const texts = new Texts();
  const has_run = new WeakSet<GPUComputePipeline>();
  const pass_of = (pass: GPUComputePassEncoder) => {
    let current: GPUComputePipeline;
    return view_of(pass, {
      setPipeline: (pipeline: GPUComputePipeline) => {
        current = pipeline;
        pass.setPipeline(pipeline);
      },
      dispatchWorkgroups: (...size: [number, number, number]) => {
        if (text.test(texts.of(current)) && has_run.has(current)) return;
        has_run.add(current);
        pass.dispatchWorkgroups(...size);
      },
    });
  };
  return view_of(device, {
    ...texts.members(device),
    createCommandEncoder: (descriptor?: GPUCommandEncoderDescriptor) => {
      const encoder = device.createCommandEncoder(descriptor);
      return view_of(encoder, {
        beginComputePass: (descriptor?: GPUComputePassDescriptor) =>
          pass_of(encoder.beginComputePass(descriptor)),
      });
    },
  });
}

/** A device whose driver refuses kernels with this text. */
function refusing(device: GPUDevice, text: RegExp): GPUDevice {
  const texts = new Texts();
  const members = texts.members(device);
  const is_refused = ({ compute }: GPUComputePipelineDescriptor) =>
    text.test(texts.of_module(compute.module));
  return view_of(device, {
    ...members,
    createComputePipeline: (descriptor: GPUComputePipelineDescriptor) => {
      if (!is_refused(descriptor)) return members.createComputePipeline(descriptor);
      const { compute } = descriptor;
      return device.createComputePipeline({ ...descriptor, compute: { ...compute, entryPoint: "nowhere" } });
    },
    createComputePipelineAsync: async (descriptor: GPUComputePipelineDescriptor) => {
      if (is_refused(descriptor)) throw new Error("refused");
      return members.createComputePipelineAsync(descriptor);
    },
  });
}

const TILE_128 = /THREADS: u32 = 16u;\nconst EACH: u32 = 8u;/;

describe.skipIf(no_webgpu !== undefined)("the self-test of an engine", () => {
  test("finds nothing on a sound device", async () => {
    const device = await open_device("as a GPU");
    expect((await logits_on(device)).reasons).toHaveLength(1);
    device.destroy();
  });

  test.each<[RegExp, RegExp, Dtype, number]>([
    [/enable subgroups/, /^Without subgroups: .*second run/, "float32", 1e-5],
    [/enable f16/, /^Without float16 tile 32x32.4x4: .*second run/, "float16", 1e-2],
    [/dot4I8Packed/, /^Without int8 tile 32x32.4x4: .*second run/, "int8", 5e-2],
    [TILE_128, /^Without float32 tile 128x128.8x8: .*second run/, "float32", 1e-5],
  ])("disables what is wrong in its second run: %s", async (text, sentence, dtype, tolerance) => {
    const device = await open_device("as a GPU");
    const uses_text = device.features.has("subgroups") || !text.source.includes("subgroups");
    const uses_halves = device.features.has("shader-f16") || !text.source.includes("f16");
    const { logits, reasons } = await logits_on(forgetful(device, text), dtype);
    const expected = await logits_on("wasm", dtype);
    expect(max_difference(logits, expected.logits)).toBeLessThan(tolerance);
    if (uses_text && uses_halves) expect(reasons.some((reason) => sentence.test(reason))).toBe(true);
    device.destroy();
  });

  test("replaces a kernel that the driver refuses by the next", async () => {
    const device = await open_device("as a GPU");
    const { logits, reasons } = await logits_on(refusing(device, /EACH: u32 = 4u/));
    const expected = await logits_on("wasm");
    expect(max_difference(logits, expected.logits)).toBeLessThan(1e-5);
    expect(reasons.join(" ")).toMatch(/Without float32 tile 32x32.4x4: .*driver refuses/);
    device.destroy();
  });

  test("refuses a device on which nothing is right", async () => {
    const device = await open_device();
    const error = await error_of(logits_on(forgetful(device, /./)));
    expect(error.code).toBe("UNSUPPORTED");
    expect(error.message).toMatch(/fails the self-test of \w+ .*device "wasm"/);
    device.destroy();
  });
});
