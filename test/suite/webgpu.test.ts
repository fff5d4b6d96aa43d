import { env, Tensor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { Trainer } from "vit-msn/training";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { temporary_directory } from "../support/directories.ts";
import { find_gpu, open_device } from "../support/gpu_devices.ts";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

/** What the reference's fixture takes. */
const PIXELS = new Tensor(
  "float32",
  Float32Array.from({ length: 3072 }, (_, i) => Math.sin(i)),
  [1, 3, 32, 32],
);

const TINY = {
  hidden_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  intermediate_size: 24,
  image_size: 8,
  patch_size: 4,
  num_labels: 3,
};
const TINY_PIXELS = new Tensor("float32", PIXELS.data.slice(0, 192), [1, 3, 8, 8]);

const { gpu, allow_software } = env.webgpu;
afterEach(() => {
  env.use_cache = true;
  Object.assign(env.webgpu, { gpu, allow_software });
});

/** The files as Blobs, which a model may read again. */
async function fixture_blobs(name: string): Promise<Record<string, Blob>> {
  const files = Object.entries(await fixture_files(name));
  return Object.fromEntries(files.map(([file, bytes]) => [file, new Blob([bytes as BlobPart])]));
}

/** A GPU whose adapter is this, for a runtime that has none like it. */
function gpu_with(requestAdapter: () => Promise<unknown>): GPU {
  return { requestAdapter, wgslLanguageFeatures: new Set() } as unknown as GPU;
}

describe("where WebGPU isn't available", () => {
  const device_of = async (device: "webgpu" | "auto") => {
    const model = await ViTMSNModel.from_config(TINY, { device });
    await model.dispose();
    return model;
  };

  test.each([
    ["no adapter", async () => null, /no adapter.*driver.*device "wasm"/s],
    ["a policy", () => Promise.reject(new Error("blocked by policy")), /blocked by policy.*device "wasm"/s],
    [
      "a device that is refused",
      async () => ({
        info: { description: "Old GPU" },
        features: new Set(),
        limits: {},
        requestDevice: () => Promise.reject(new Error("limit exceeded")),
      }),
      /The GPU Old GPU can't provide a device .*limit exceeded.*device "wasm"/s,
    ],
  ])("%s is named, and auto takes the CPU", async (_, requestAdapter, message) => {
    env.webgpu.gpu = gpu_with(requestAdapter);
    const error = await error_of(device_of("webgpu"));
    expect(error.code).toBe("UNSUPPORTED");
    expect(error.message).toMatch(message);
    const { device, engine_info } = await device_of("auto");
    expect(device).toBe("wasm");
    expect(engine_info.reasons[0]).toMatch(/^Not on WebGPU: /);
    expect(engine_info.reasons[0]).toMatch(message);
  });

  test("a software adapter isn't used unless it is allowed", async () => {
    const adapter = {
      info: { description: "Slow", isFallbackAdapter: true },
      features: new Set(),
      limits: {},
      requestDevice: () => Promise.reject(new Error("asked")),
    };
    env.webgpu.gpu = gpu_with(async () => adapter);
    expect((await device_of("auto")).engine_info.reasons[0]).toMatch(
      /Slow, is a software renderer on the CPU/,
    );
    // Asked for by name it is taken, unless that is forbidden.
    expect((await error_of(device_of("webgpu"))).message).toContain("asked");
    env.webgpu.allow_software = false;
    expect((await error_of(device_of("webgpu"))).message).toMatch(/Slow, is a software renderer on the CPU/);
  });

  test.each(["gpu", {}, null, 3])("device: %j is an error that names what there is", async (device) => {
    const error = await error_of(ViTMSNModel.from_config(TINY, { device: device as "auto" }));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toContain('"wasm", "webgpu", "auto" or a GPUDevice');
  });
});

describe.skipIf(no_webgpu !== undefined)("a model on WebGPU", () => {
  /** One for most tests: kernels are compiled once for a device, which takes software seconds. */
  let shared: GPUDevice;
  /** What the CPU gives. */
  let expected: Float32Array;
  beforeAll(async () => {
    shared = await open_device();
    const model = await on("wasm");
    expected = (await model.forward({ pixel_values: PIXELS })).logits.data;
    await model.dispose();
  });

  async function on(device: "wasm" | "webgpu" | "auto" | GPUDevice) {
    return ViTMSNForImageClassification.from_pretrained(await fixture_blobs("tiny"), { device });
  }

  async function logits_of(model: ViTMSNForImageClassification): Promise<Float32Array> {
    return (await model.forward({ pixel_values: PIXELS })).logits.data;
  }

  test("reports where it runs and why", async () => {
    const model = await on("webgpu");
    expect(model.device).toBe("webgpu");
    const { level, adapter, reasons } = model.engine_info;
    expect(level).toBe("webgpu");
    expect(adapter?.name).not.toBe("");
    expect(reasons).toHaveLength(1);
    expect(reasons[0]).toContain(adapter?.name);
    expect(max_difference(await logits_of(model), expected)).toBeLessThan(1e-5);
    await model.dispose();
  });

  test("auto takes a software adapter where that is allowed", async () => {
    env.webgpu.allow_software = true;
    const model = await on("auto");
    expect(model.device).toBe("webgpu");
    await model.dispose();
  });

  test("on the host's device leaves nothing there, keeps its listener, and doesn't end it", async () => {
    const device = await open_device();
    const listener = () => {};
    device.onuncapturederror = listener;
    const alive = watch_buffers(device);
    for (let cycle = 0; cycle < 50; cycle++) {
      const model = await ViTMSNForImageClassification.from_config(TINY, { device, seed: cycle });
      await model.forward({ pixel_values: TINY_PIXELS, output_hidden_states: true });
      expect(alive.size).toBeGreaterThan(0);
      await model.dispose();
      expect(alive.size).toBe(0);
    }
    expect(device.onuncapturederror).toBe(listener);
    const lost = await Promise.race([
      device.lost,
      new Promise((resolve) => setTimeout(resolve, 20, "alive")),
    ]);
    expect(lost).toBe("alive");
    device.destroy();
  });

  test("holds no more after forward passes than before them", async () => {
    const model = await on(shared);
    await logits_of(model);
    const before = model.memory();
    for (let i = 0; i < 5; i++) await logits_of(model);
    expect(model.memory()).toEqual(before);
    expect(before.reserved).toBeGreaterThanOrEqual(before.bytes);
    await model.dispose();
  });

  test("answers several forward passes at once, and each as if it were alone", async () => {
    const model = await on(shared);
    const inputs = [1, 2, 3, 4].map((seed) => PIXELS.data.map((v) => v * seed));
    const forward = (data: Float32Array) =>
      model.forward({ pixel_values: new Tensor("float32", data, [1, 3, 32, 32]) });
    const together = await Promise.all(inputs.map(forward));
    for (const [i, data] of inputs.entries()) {
      const alone = await forward(data);
      expect(together[i]?.logits.data).toEqual(alone.logits.data);
    }
    await model.dispose();
  });

  test.each(["float32", "float16", "bfloat16", "int8"] as const)(
    "saves %s as the CPU does",
    async (dtype) => {
      const saved = async (device: "wasm" | GPUDevice) => {
        const directory = await temporary_directory();
        const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), {
          dtype,
          device,
        });
        await model.save_pretrained(directory.target);
        const files = await directory.read_files();
        await Promise.all([model.dispose(), directory.remove()]);
        return files["model.safetensors"];
      };
      expect(await saved(shared)).toEqual(await saved("wasm"));
    },
  );

  test("computes losses, pooled features and visible patches as the CPU does", async () => {
    const run = async (device: "wasm" | GPUDevice) => {
      const options = { device, seed: 3 } as const;
      const labels = { single: [2], regression: [0.5], multi: [[1, 0, 1]] };
      const pixel_values = TINY_PIXELS;
      const found: number[] = [];
      for (const values of [labels.single, labels.multi]) {
        const model = await ViTMSNForImageClassification.from_config(TINY, options);
        found.push(...((await model.forward({ pixel_values, labels: values })).loss?.data ?? []));
        await model.dispose();
      }
      const one = await ViTMSNForImageClassification.from_config({ ...TINY, num_labels: 1 }, options);
      found.push(...((await one.forward({ pixel_values, labels: labels.regression })).loss?.data ?? []));
      await one.dispose();
      const backbone = await ViTMSNModel.from_config(TINY, options);
      found.push(...(await backbone.get_image_features({ pixel_values }, "mean")).data);
      const { last_hidden_state } = await backbone.forward({ pixel_values, visible_patches: [3, 0] });
      found.push(...last_hidden_state.data);
      await backbone.dispose();
      return found;
    };
    const [gpu_values, cpu_values] = [await run(shared), await run("wasm")];
    expect(gpu_values).toHaveLength(cpu_values.length);
    expect(max_difference(gpu_values, cpu_values)).toBeLessThan(1e-5);
  });

  test("refuses what the device can't hold by a typed error, and still works", async () => {
    const model = await on(shared);
    // More than the 128 MiB that a binding holds by default, in one tensor of the image's patches.
    const side = 32 * 110;
    const huge = new Tensor("float32", new Float32Array(3 * side * side), [1, 3, side, side]);
    const error = await error_of(model.forward({ pixel_values: huge, interpolate_pos_encoding: true }));
    expect(["UNSUPPORTED", "OUT_OF_MEMORY"]).toContain(error.code);
    expect(max_difference(await logits_of(model), expected)).toBeLessThan(1e-5);
    await model.dispose();
  });

  test("stops at an abort and answers afterwards", async () => {
    const model = await on(shared);
    const controller = new AbortController();
    const forward = model.forward({ pixel_values: PIXELS, signal: controller.signal });
    controller.abort();
    expect((await error_of(forward)).code).toBe("ABORTED");
    expect(max_difference(await logits_of(model), expected)).toBeLessThan(1e-5);
    await model.dispose();
  });

  test("that is disposed during a forward pass throws DISPOSED, and its device's other models still work", async () => {
    const [model, other] = [await on(shared), await on(shared)];
    const forward = model.forward({ pixel_values: PIXELS });
    await model.dispose();
    expect((await error_of(forward)).code).toBe("DISPOSED");
    expect((await error_of(model.forward({ pixel_values: PIXELS }))).code).toBe("DISPOSED");
    expect(max_difference(await logits_of(other), expected)).toBeLessThan(1e-5);
    await other.dispose();
  });

  test("is opened again after its device was lost", async () => {
    const opened: GPUDevice[] = [];
    env.webgpu.gpu = await watched_gpu(opened);
    const model = await on("webgpu");
    const before = await logits_of(model);
    const forward = model.forward({ pixel_values: PIXELS });
    (opened[0] as GPUDevice).destroy();
    const error = await error_of(forward);
    expect(error.code).toBe("ENGINE_DEAD");
    expect(error.message).toMatch(/GPU device of this model was lost \(destroyed/);
    const [a, b] = await Promise.all([logits_of(model), logits_of(model)]);
    expect(opened).toHaveLength(2);
    expect([a, b]).toEqual([before, before]);
    await model.dispose();
    expect((await opened[1]?.lost)?.reason).toBe("destroyed");
  });

  test("that was trained isn't opened again with what it was loaded with", async () => {
    const opened: GPUDevice[] = [];
    env.webgpu.gpu = await watched_gpu(opened);
    const model = await on("webgpu");
    const image = new Tensor("float32", PIXELS.data, [3, 32, 32]);
    const train_dataset = [{ pixel_values: image, label: 1 }];
    await new Trainer({ model, train_dataset, args: { max_steps: 1 } }).train();
    (opened[0] as GPUDevice).destroy();
    await opened[0]?.lost;
    const error = await error_of(model.forward({ pixel_values: PIXELS }));
    expect(error.code).toBe("ENGINE_DEAD");
    expect(error.message).toContain("trained the model");
    expect(opened).toHaveLength(1);
    await model.dispose();
  });

  test("that can't be read again throws an error that asks for it to be loaded again", async () => {
    const device = await open_device();
    const model = await on(device);
    device.destroy();
    await device.lost;
    for (let i = 0; i < 2; i++) {
      const error = await error_of(model.forward({ pixel_values: PIXELS }));
      expect(error.code).toBe("ENGINE_DEAD");
      expect(error.message).toContain("load the model again");
    }
    await model.dispose();
  });

  test("accepts its own WebAssembly in env.wasm, and no other", async () => {
    const model = await on(shared);
    await model.dispose();
    const wrong = ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), {
      device: shared,
      wasm: await WebAssembly.compile(NO_EXPORTS),
    });
    expect((await error_of(wrong)).message).toContain("vit_msn_webgpu.wasm");
  });

  test("profiles a forward pass", async () => {
    const model = await on("webgpu");
    const profile = await model.profile({ pixel_values: PIXELS }, { peak: PEAK });
    const layers = model.config.num_hidden_layers;
    const names = profile.ops.map(({ name }) => name);
    expect(names.filter((name) => name === "scaled_dot_product_attention")).toHaveLength(layers);
    expect(names.filter((name) => name.startsWith("linear "))).toHaveLength(4 * layers + 1);
    expect(profile.ops.every(({ bytes, dispatches }) => bytes > 0 && dispatches > 0)).toBe(true);
    // At most seven kernels a layer, and those before and after them.
    const dispatches = profile.ops.reduce((sum, op) => sum + op.dispatches, 0);
    expect(dispatches).toBeLessThanOrEqual(7 * layers + 6);
    const has_clock = model.engine_info.adapter?.features.includes("timestamp-query");
    expect(profile.ops.every(({ ms }) => (ms !== undefined) === has_clock)).toBe(true);
    expect(profile.table()).toContain("scaled_dot_product_attention");
    if (has_clock) expect(profile.table()).toContain("% of roofline");
    const { traceEvents } = JSON.parse(profile.chrome_trace());
    expect(traceEvents).toHaveLength(has_clock ? profile.ops.length : 0);
    // A forward pass after it isn't timed, and is as it was.
    expect(max_difference(await logits_of(model), expected)).toBeLessThan(1e-5);
    await model.dispose();
  });
});

describe.skipIf(no_webgpu !== undefined)("a model on an adapter that is taken for a GPU", () => {
  test("has its tiles chosen by measurement, for models that come later as well", async () => {
    env.use_cache = false;
    const device = await open_device("as a GPU");
    const load = () => ViTMSNForImageClassification.from_config(TINY, { device, seed: 3 });
    const forward = async (model: ViTMSNForImageClassification) =>
      (await model.forward({ pixel_values: TINY_PIXELS })).logits.data;
    const model = await load();
    const before = await forward(model);
    const choices = await model.tune({ pixel_values: TINY_PIXELS });
    // Query, key and value; attention's output; up; down; the patches; the classifier.
    const sizes = choices.map(({ inputs, outputs }) => `${inputs} → ${outputs}`);
    expect(new Set(sizes).size).toBeGreaterThanOrEqual(5);
    expect(choices.filter(({ op }) => op === "attention")).toMatchObject([
      { rows: 5, inputs: 8, outputs: 2 },
    ]);
    for (const { op, tile, default_tile, ms, dtype, rows } of choices) {
      const of_layers = ["128x128/8x8", "32x32/4x4", "64x64/4x4", "64x64/8x8"];
      const tiles = op === "attention" ? ["16x16", "32x16"] : of_layers;
      expect(Object.keys(ms).sort()).toEqual(tiles);
      expect(tiles).toContain(default_tile);
      expect(ms[tile]).toBe(Math.min(...Object.values(ms)));
      expect([dtype, rows > 0]).toEqual(["float32", true]);
    }
    expect(await forward(model)).toEqual(before);
    await model.dispose();
    const later = await load();
    expect(await later.tune({ pixel_values: TINY_PIXELS })).toEqual(choices);
    expect(await forward(later)).toEqual(before);
    await later.dispose();
    device.destroy();
  });

  test("computes few results per invocation where registers are few", async () => {
    env.use_cache = false;
    const device = await open_device("as a GPU");
    const value = {
      vendor: "intel",
      description: "",
      architecture: "",
      device: "",
      isFallbackAdapter: false,
    };
    Object.defineProperty(device, "adapterInfo", { value, configurable: true });
    const model = await ViTMSNForImageClassification.from_config(TINY, { device });
    const choices = await model.tune({ pixel_values: TINY_PIXELS });
    for (const { ms } of choices.filter(({ op }) => op === "linear"))
      expect(Object.keys(ms).sort()).toEqual(["32x32/4x4", "64x64/4x4"]);
    await model.dispose();
    device.destroy();
  });

  test("has nothing to choose on software", async () => {
    const model = await ViTMSNForImageClassification.from_config(TINY, { device: "webgpu" });
    const choices = await model.tune({ pixel_values: TINY_PIXELS });
    expect(choices.every(({ tile, default_tile }) => tile === default_tile)).toBe(true);
    await model.dispose();
  });
});

test("tiles are WebGPU's", async () => {
  const model = await ViTMSNForImageClassification.from_config(TINY, { device: "wasm" });
  const error = await error_of(model.tune({ pixel_values: TINY_PIXELS }));
  expect(error.code).toBe("UNSUPPORTED");
  expect(error.message).toContain('device: "webgpu"');
  await model.dispose();
});

const PEAK = { gflops: 100, gigabytes_per_second: 10 };
const NO_EXPORTS = Uint8Array.of(0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00);

/** The device's buffers that weren't destroyed. */
function watch_buffers(device: GPUDevice): Set<GPUBuffer> {
  const alive = new Set<GPUBuffer>();
  const create = device.createBuffer.bind(device);
  device.createBuffer = (descriptor) => {
    const buffer = create(descriptor);
    const destroy = buffer.destroy.bind(buffer);
    buffer.destroy = () => {
      alive.delete(buffer);
      destroy();
    };
    alive.add(buffer);
    return buffer;
  };
  return alive;
}

/** This runtime's GPU, and the devices that it gives. */
async function watched_gpu(opened: GPUDevice[]): Promise<GPU> {
  const real = await find_gpu();
  return gpu_with(async () => {
    const adapter = (await real.requestAdapter()) as GPUAdapter;
    return {
      info: adapter.info,
      features: adapter.features,
      limits: adapter.limits,
      requestDevice: async (descriptor: GPUDeviceDescriptor) => {
        const device = await adapter.requestDevice(descriptor);
        opened.push(device);
        return device;
      },
    };
  });
}
