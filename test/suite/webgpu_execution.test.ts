import { Tensor, ViTMSNForImageClassification, ViTMSNModel } from "vit-msn";
import { beforeAll, describe, expect, test } from "vitest";
import { open_device, watched } from "../support/gpu_devices.ts";
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

  test("answer in the order in which they were asked for, in one forward's memory", async () => {
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
      expect(error.message).toMatch(/for (patch_embed|tensor) takes \d+ bytes.*binds 25000/);
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
