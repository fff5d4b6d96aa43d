import { RawImage, Tensor, ViTImageProcessor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { open_device, type Pretence, type Seen, watched } from "../support/gpu_devices.ts";
import { error_of } from "../support/rejections.ts";
import { max_difference } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

const CONFIG = {
  hidden_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  intermediate_size: 48,
  image_size: 32,
  patch_size: 4,
  num_labels: 3,
};

function images(batch: number, side = 32): Tensor<"float32"> {
  const data = Float32Array.from({ length: batch * 3 * side * side }, (_, i) => Math.sin(i * 1.7));
  return new Tensor("float32", data, [batch, 3, side, side]);
}

const signal = () => new AbortController();

describe.skipIf(no_webgpu !== undefined)("forwards on WebGPU", () => {
  let device: GPUDevice;
  beforeAll(async () => {
    device = await open_device();
  });
  const load = (on: "wasm" | GPUDevice = device, options = {}) =>
    ViTMSNForImageClassification.from_config(CONFIG, { device: on, ...options });

  test("find their pipelines compiled, all at once, while the model loads", async () => {
    for (const options of [{}, { attn_implementation: "eager", dtype: "int8" }] as const) {
      const { seen, view } = watched(await open_device());
      const model = await load(view, options);
      const { asynchronous } = seen.pipelines;
      expect(asynchronous).toBeGreaterThan(5);
      expect(seen.pipelines.synchronous).toBe(0);
      await model.forward({ pixel_values: images(1) });
      expect(seen.pipelines).toEqual({ synchronous: 0, asynchronous });
      // The next model on the device has them already.
      const other = await load(view, options);
      expect(seen.pipelines.asynchronous).toBe(asynchronous);
      await Promise.all([model.dispose(), other.dispose()]);
      view.destroy();
    }
  });

  test("compile a pipeline that couldn't be compiled ahead when it is used", async () => {
    const { seen, view } = watched(await open_device(), { refuses_ahead: true });
    const model = await load(view);
    const { logits } = await model.forward({ pixel_values: images(1) });
    expect(logits.data.every(Number.isFinite)).toBe(true);
    expect(seen.pipelines.synchronous).toBeGreaterThan(5);
    await model.dispose();
    view.destroy();
  });

  test("are one command buffer each, with all that is read, on a GPU", async () => {
    const { seen, view } = watched(await open_device(), { is_hardware: true });
    const model = await load(view);
    await model.forward({ pixel_values: images(1) });
    seen.command_buffers = 0;
    const everything = { output_hidden_states: true, output_attentions: true, labels: [1] };
    await model.forward({ pixel_values: images(1), ...everything });
    expect(seen.command_buffers).toBe(1);
    await Promise.all([1, 2, 3].map(() => model.forward({ pixel_values: images(1) })));
    expect(seen.command_buffers).toBe(4);
    await model.dispose();
    view.destroy();
  });

  test("ask the device for nothing new from the second on, and whether it accepted everything once", async () => {
    const { seen, view } = watched(await open_device(), { is_hardware: true });
    const model = await load(view);
    await model.forward({ pixel_values: images(1) });
    for (let i = 0; i < 3; i++) {
      Object.assign(seen, { bind_groups: 0, scopes: 0 });
      await model.forward({ pixel_values: images(1) });
      // One scope for each of the three kinds of errors.
      expect(seen).toMatchObject({ bind_groups: 0, scopes: 3 });
    }
    await model.dispose();
    view.destroy();
  });

  test.each([true, false])(
    "await one answer of the device for each image, as a GPU: %s",
    async (is_hardware) => {
      const { seen, view } = watched(await open_device(), { is_hardware });
      const model = await load(view);
      const processor = new ViTImageProcessor({ size: { height: 32, width: 32 } });
      const image = new RawImage(new Uint8ClampedArray(40 * 40 * 3).fill(99), 40, 40, 3);
      for (let i = 0; i < 3; i++) {
        seen.answers = 0;
        const { pixel_values } = await processor(image, { device: model });
        await model.forward({ pixel_values });
        expect(seen.answers).toBe(1);
      }
      await model.dispose();
      view.destroy();
    },
  );

  test("are submitted before the device has reported whether it accepted their calls", async () => {
    const pretence: Pretence = { is_hardware: true };
    const { seen, view } = watched(await open_device(), pretence);
    const model = await load(view);
    const logits: Float32Array[] = [];
    for (let i = 0; i < 2; i++) {
      // A forward pass that waited for the reports before it submits would never end.
      pretence.reports_after = seen.command_buffers + 1;
      logits.push((await model.forward({ pixel_values: images(2) })).logits.data);
    }
    expect(logits[1]).toEqual(logits[0]);
    await model.dispose();
    view.destroy();
  });

  test("end on devices that notice finished work only when something is submitted", async () => {
    const device = await open_device();
    const { view } = watched(device, { polls_on_submission: true });
    const [model, other] = [await load(device), await load(view)];
    const expected = await model.forward({ pixel_values: images(1) });
    const found = await other.forward({ pixel_values: images(1) });
    expect(found.logits.data).toEqual(expected.logits.data);
    await Promise.all([model.dispose(), other.dispose()]);
    device.destroy();
  });

  test("answer in the order in which they were asked for, in one forward pass's memory", async () => {
    const model = await load();
    await model.forward({ pixel_values: images(2) });
    const one = model.memory().reserved;
    const order: number[] = [];
    const outputs = await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const output = await model.forward({ pixel_values: images(2) });
        order.push(i);
        return output;
      }),
    );
    expect(order).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    for (const { logits } of outputs) expect(logits.data).toEqual(outputs[0]?.logits.data);
    const pixels = 4 * images(2).size;
    // What comes from JavaScript may not overwrite what waits.
    expect(model.memory().reserved).toBeLessThanOrEqual(one + 3 * pixels);
    expect(model.memory().handles).toBe(await load().then(handles_and_dispose));
    await model.dispose();
  });

  test("that are aborted while they wait don't affect the others", async () => {
    const model = await load();
    const controllers = [signal(), signal(), signal(), signal()];
    const forwards = controllers.map(({ signal }) => model.forward({ pixel_values: images(1), signal }));
    controllers[3]?.abort();
    controllers[1]?.abort();
    const settled = await Promise.allSettled(forwards);
    expect(settled.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled", "rejected"]);
    expect((await error_of(forwards[1] as Promise<unknown>)).code).toBe("ABORTED");
    await model.forward({ pixel_values: images(1) });
    await model.dispose();
  });

  test("that fail or end with the model don't block those that wait", async () => {
    const model = await load();
    const bad = model.forward({ pixel_values: images(1), visible_patches: [99] });
    const good = model.forward({ pixel_values: images(1) });
    expect((await error_of(bad)).code).toBe("INVALID_ARGUMENT");
    await good;
    const forwards = [1, 2, 3, 4].map(() => error_of(model.forward({ pixel_values: images(1) })));
    await model.dispose();
    for (const error of await Promise.all(forwards)) expect(error.code).toBe("DISPOSED");
  });

  describe("on a device that takes a second for each submission", () => {
    /** A clock that only this device advances. */
    let now = 0;
    const advance = (ms: number) => {
      now += ms;
    };
    const slow: Pretence = { is_hardware: true, name: "slow", finished: () => advance(1000) };
    const pretence = { ...slow };
    const inputs = { pixel_values: images(8) };
    let seen: Seen;
    let view: GPUDevice;
    let model: ViTMSNForImageClassification;
    let whole: Float32Array;

    const load_deep = (device: GPUDevice) =>
      ViTMSNForImageClassification.from_config({ ...CONFIG, num_hidden_layers: 8 }, { device });
    /** A few forward passes, by which the device's speed is measured. */
    const measure = async () => {
      for (let i = 0; i < 5; i++) await model.forward(inputs);
    };
    /** The command buffers of one forward pass. */
    const submissions = async () => {
      seen.command_buffers = 0;
      await model.forward(inputs);
      return seen.command_buffers;
    };

    beforeAll(async () => {
      vi.spyOn(performance, "now").mockImplementation(() => now);
      ({ seen, view } = watched(await open_device(), pretence));
      model = await load_deep(view);
      seen.command_buffers = 0;
      whole = (await model.forward(inputs)).logits.data;
      expect(seen.command_buffers).toBe(1);
      await measure();
    });
    afterAll(() => {
      vi.restoreAllMocks();
    });

    test("are submitted in pieces, with the same results", async () => {
      expect(await submissions()).toBeGreaterThan(3);
      const { logits } = await model.forward({ ...inputs, output_hidden_states: true });
      expect(logits.data).toEqual(whole);
    });

    test("stop between submissions when they are aborted", async () => {
      const all = await submissions();
      const controller = new AbortController();
      pretence.finished = () => controller.abort();
      seen.command_buffers = 0;
      const error = await error_of(model.forward({ ...inputs, signal: controller.signal }));
      Object.assign(pretence, slow);
      expect(error.code).toBe("ABORTED");
      expect(seen.command_buffers).toBeGreaterThan(0);
      expect(seen.command_buffers).toBeLessThan(all);
    });

    test("take fewer images at a time where one op on all of them would take too long", async () => {
      const many = Math.ceil((model.engine.work_limit ?? 0) / (2 * 65 * 24 * 130)) + 1;
      const together = (await model.forward({ pixel_values: images(many) })).logits;
      const [first] = (await model.forward({ pixel_values: images(1) })).logits.tolist() as number[][];
      expect(together.dims).toEqual([many, 3]);
      expect((together.tolist() as number[][])[0]).toEqual(first);
    });

    test("are one submission again once the device is fast", async () => {
      pretence.finished = () => advance(0.1);
      await measure();
      expect(await submissions()).toBe(1);
      Object.assign(pretence, slow);
    });

    test("hold half the work after the device was lost", async () => {
      const before = model.engine.work_limit ?? 0;
      view.destroy();
      await view.lost;
      const other = await load_deep(watched(await open_device(), slow).view);
      expect(other.engine.work_limit).toBe(before / 2);
      await Promise.all([model.dispose(), other.dispose()]);
    });
  });

  describe("of more than the device binds", () => {
    /** A device that says it binds as much as this. */
    const binding = (bytes: number) => watched(device, { binds: bytes }).view;
    // One image's widest activation, [65, 72] floats, is 18,720 bytes.
    const TWO_IMAGES = 40_000;

    test.each(["sdpa", "eager"] as const)(
      "give what others give, image by image, %s",
      async (attn_implementation) => {
        const inputs = {
          pixel_values: images(5),
          labels: [0, 2, 1, 1, 0],
          output_hidden_states: true,
          output_attentions: attn_implementation === "eager",
        };
        const [cpu, gpu] = [
          await load("wasm", { attn_implementation }),
          await load(binding(TWO_IMAGES), { attn_implementation }),
        ];
        const [expected, found] = [await cpu.forward(inputs), await gpu.forward(inputs)];
        expect(Object.keys(found).sort()).toEqual(Object.keys(expected).sort());
        for (const name of ["logits", "loss"] as const) {
          expect(found[name]?.dims).toEqual(expected[name]?.dims);
          expect(max_difference(found[name]?.data ?? [], expected[name]?.data ?? [])).toBeLessThan(1e-5);
        }
        for (const name of ["hidden_states", "attentions"] as const) {
          expect(found[name]?.length).toBe(expected[name]?.length);
          for (const [i, tensor] of (expected[name] ?? []).entries()) {
            expect(found[name]?.[i]?.dims).toEqual(tensor.dims);
            expect(max_difference(found[name]?.[i]?.data ?? [], tensor.data)).toBeLessThan(1e-5);
          }
        }
        await Promise.all([cpu.dispose(), gpu.dispose()]);
      },
    );

    test("masks, visible patches and features follow their images", async () => {
      const mask = Array.from({ length: 5 }, (_, b) =>
        Array.from({ length: 64 }, (_, i) => (i * 7 + b) % 3 === 0),
      );
      const visible = Array.from({ length: 5 }, (_, b) => [60 - b, b, 2 * b + 20]);
      const pixel_values = images(5);
      const run = async (on: "wasm" | GPUDevice) => {
        const model = await ViTMSNModel.from_config(CONFIG, { device: on, use_mask_token: true });
        const masked = await model.forward({ pixel_values, bool_masked_pos: mask });
        const seen = await model.forward({ pixel_values, visible_patches: visible });
        const features = await model.get_image_features({ pixel_values, visible_patches: [3, 5] }, "mean");
        await model.dispose();
        return [masked.last_hidden_state, seen.last_hidden_state, features];
      };
      const [expected, found] = [await run("wasm"), await run(binding(TWO_IMAGES))];
      for (const [i, tensor] of expected.entries()) {
        expect(found[i]?.dims).toEqual(tensor.dims);
        expect(max_difference(found[i]?.data ?? [], tensor.data)).toBeLessThan(1e-4);
      }
    });

    test("one image's wide activations are cut by rows and heads", async () => {
      // 17² + 1 tokens: pixels of 55,488 bytes and hidden states fit, qkv of 83,520 and the MLP's 55,680 don't.
      const inputs = { pixel_values: images(2, 68), interpolate_pos_encoding: true };
      const [cpu, gpu] = [await load("wasm"), await load(binding(55_600))];
      const [expected, found] = [await cpu.forward(inputs), await gpu.forward(inputs)];
      expect(max_difference(found.logits.data, expected.logits.data)).toBeLessThan(1e-5);
      await Promise.all([cpu.dispose(), gpu.dispose()]);
    });

    test("hidden states that no binding holds are an error that names the op", async () => {
      const gpu = await load(binding(25_000));
      const inputs = { pixel_values: images(1, 68), interpolate_pos_encoding: true };
      const error = await error_of(gpu.forward(inputs));
      expect(error.code).toBe("UNSUPPORTED");
      expect(error.message).toMatch(/for (patch_embed|tensor) takes \d+ bytes.*bind at most 25000/);
      expect((await gpu.forward({ pixel_values: images(1) })).logits.dims).toEqual([1, 3]);
      await gpu.dispose();
    });
  });
});

async function handles_and_dispose(model: ViTMSNForImageClassification): Promise<number> {
  const { handles } = model.memory();
  await model.dispose();
  return handles;
}
