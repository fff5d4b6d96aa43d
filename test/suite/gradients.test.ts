import { env, type PretrainedOptions, Tensor, ViTMSNForImageClassification } from "vit-msn";
import { compute_gradients, type GradientOptions } from "vit-msn/training";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { open_device } from "../support/gpu_devices.ts";
import { fixture_files } from "../support/models.ts";
import { type FixtureTensor, max_difference, read_tensors } from "../support/tensors.ts";
import { no_webgpu } from "../support/webgpu.ts";

/** Every fixture with a loss. */
const CASES = [
  "tiny",
  "tiny_rect",
  "tiny_nobias",
  "tiny_relu",
  "tiny_silu",
  "tiny_gelu_new",
  "tiny_quick_gelu",
  "odd_heads",
  "interpolate",
  "regression",
  "multi_label",
  "keys_v5_names",
  "keys_mixed_prefix",
  "pytorch_bin",
];
/** Of the largest magnitude in each tensor's gradient. */
const TOLERANCE = 1e-4;

/** What learns: the CPU's engine, on several threads where a thread may wait, and WebGPU's. */
const ENGINES: readonly { threads: number; webgpu: boolean }[] = [
  { threads: 1, webgpu: false },
  ...(typeof document === "undefined" ? [{ threads: 2, webgpu: false }] : []),
  ...(no_webgpu === undefined ? [{ threads: 1, webgpu: true }] : []),
];

type Tensors = Map<string, FixtureTensor>;

function as_tensor({ dtype, dims, data }: FixtureTensor): Tensor {
  if (dtype === "I64") return new Tensor("int64", data as BigInt64Array, dims);
  return new Tensor("float32", data as Float32Array, dims);
}

function inputs_of(name: string, expected: Tensors) {
  return {
    pixel_values: as_tensor(expected.get("in.pixel_values") as FixtureTensor),
    labels: as_tensor(expected.get("in.labels") as FixtureTensor),
    interpolate_pos_encoding: name === "interpolate",
  };
}

async function gradients_of(name: string, options: PretrainedOptions, gradient_options?: GradientOptions) {
  const expected = await read_tensors(`test/fixtures/${name}/expected.safetensors`);
  const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files(name), options);
  const before = model.memory();
  try {
    return { expected, ...(await compute_gradients(model, inputs_of(name, expected), gradient_options)) };
  } finally {
    expect(model.memory().handles).toBe(before.handles);
    expect(model.memory().bytes).toBe(before.bytes);
    await model.dispose();
  }
}

function magnitude(values: ArrayLike<number>): number {
  return Array.from(values).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

const warn = env.warn;
beforeAll(() => {
  env.warn = () => {};
});
afterEach(() => {
  env.warn = warn;
});

describe.each(["sdpa", "eager"] as const)("%s gives the reference's gradients", (attn_implementation) => {
  describe.each(ENGINES)("$threads threads, webgpu: $webgpu", ({ threads, webgpu }) => {
    const engine: PretrainedOptions = { num_threads: threads };
    beforeAll(async () => {
      // One device for all: kernels are compiled once.
      if (webgpu) engine.device = await open_device();
    });

    test.each(CASES)("%s", async (name) => {
      const { expected, loss, gradients } = await gradients_of(name, { attn_implementation, ...engine });
      const { data: reference } = expected.get("out.loss") as FixtureTensor;
      expect(loss).toBeCloseTo(Number(reference[0]), 4);
      const wanted = [...expected.keys()].filter((key) => key.startsWith("grad."));
      expect(gradients.size).toBe(wanted.length);
      // A key's gradient is exactly 0 by mathematics (softmax doesn't see what all keys share): its scale is the layer's.
      const scale_of = (key: string, values: Float32Array) =>
        magnitude(
          key.endsWith("attention.key.bias")
            ? (expected.get(key.replace("key.bias", "query.bias"))?.data as Float32Array)
            : values,
        );
      for (const key of wanted) {
        const { dims, data } = expected.get(key) as FixtureTensor;
        const found = gradients.get(key.replace(/^grad\.(vit\.)?/, "")) as Tensor<"float32">;
        expect(found?.dims, key).toEqual(dims);
        const scale = scale_of(key, data as Float32Array);
        expect(max_difference(found.data, data as Float32Array) / scale, key).toBeLessThanOrEqual(TOLERANCE);
      }
    });
  });
});

describe("checkpointing", () => {
  test.each(["sdpa", "eager"] as const)("gives the same bits: %s", async (attn_implementation) => {
    const plain = await gradients_of("odd_heads", { attn_implementation });
    const again = await gradients_of("odd_heads", { attn_implementation }, { gradient_checkpointing: true });
    expect(again.loss).toBe(plain.loss);
    expect([...again.gradients]).toEqual([...plain.gradients]);
  });

  test("memory grows with the depth's square root or less", async () => {
    const peaks = new Map<number, number>();
    for (const num_hidden_layers of [4, 16, 64])
      peaks.set(num_hidden_layers, await peak_of(num_hidden_layers, true));
    const [shallow, middle, deep] = [...peaks.values()] as [number, number, number];
    expect(middle / shallow).toBeLessThan(2);
    expect(deep / middle).toBeLessThan(2.1);
    expect(await peak_of(16, false)).toBeGreaterThan(4 * middle);
  });
});

/** The most bytes of activations and gradients of activations alive at a time. */
async function peak_of(num_hidden_layers: number, gradient_checkpointing: boolean): Promise<number> {
  const config = {
    hidden_size: 32,
    num_hidden_layers,
    num_attention_heads: 2,
    intermediate_size: 128,
    image_size: 32,
    patch_size: 4,
  };
  const model = await ViTMSNForImageClassification.from_config(config);
  const parameters = model.memory().bytes;
  let peak = 0;
  // What is alive is asked whenever anything is made; what parameters' gradients take is not activations'.
  const engine = model.engine as unknown as Record<string, unknown>;
  const ops = [
    "linear",
    "layer_norm",
    "activate",
    "linear_backward_input",
    "layer_norm_backward",
    "scaled_dot_product_attention_backward",
  ];
  for (const name of ops) {
    const op = engine[name] as (...args: unknown[]) => unknown;
    engine[name] = (...args: unknown[]) => {
      const result = op.apply(engine, args);
      peak = Math.max(peak, model.memory().bytes);
      return result;
    };
  }
  const pixel_values = new Tensor(
    "float32",
    Float32Array.from({ length: 8 * 3072 }, (_, i) => Math.sin(i)),
    [8, 3, 32, 32],
  );
  const options = { gradient_checkpointing, freeze_keys: ["encoder.", "layernorm."] };
  await compute_gradients(model, { pixel_values, labels: [0, 1, 0, 1, 0, 1, 0, 1] }, options);
  await model.dispose();
  return peak - parameters;
}

describe("frozen parameters", () => {
  test("have no gradients, and what lies below the lowest trained one isn't computed", async () => {
    const { expected } = await gradients_of("tiny", {});
    const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"));
    const called = count_calls(model.engine as unknown as Record<string, unknown>);
    const inputs = inputs_of("tiny", expected);
    const head = await compute_gradients(model, inputs, { freeze_backbone: true });
    expect([...head.gradients.keys()]).toEqual(["classifier.weight", "classifier.bias"]);
    expect(called()).toEqual({ linear_backward_weights: 1 });
    const top = await compute_gradients(model, inputs, { freeze_layers: 2 });
    expect(
      [...top.gradients.keys()]
        .filter((key) => key.startsWith("encoder."))
        .every((key) => key.startsWith("encoder.layer.2.")),
    ).toBe(true);
    expect(called()).toMatchObject({
      scaled_dot_product_attention_backward: 1,
      linear_backward_weights: 5,
      linear_backward_input: 5,
    });
    await model.dispose();
  });

  test("unknown names are refused", async () => {
    const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"));
    const pixel_values = new Tensor("float32", new Float32Array(3072), [1, 3, 32, 32]);
    const wrong = compute_gradients(
      model,
      { pixel_values, labels: [0] },
      { freeze_keys: ["encoder.layer.9."] },
    );
    await expect(wrong).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    const many = compute_gradients(model, { pixel_values, labels: [0] }, { freeze_layers: 4 });
    await expect(many).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await model.dispose();
  });
});

/** Counts calls of the backward ops since the last time it was asked. */
function count_calls(engine: Record<string, unknown>): () => Record<string, number> {
  let counts: Record<string, number> = {};
  for (const name of [
    "linear_backward_input",
    "linear_backward_weights",
    "scaled_dot_product_attention_backward",
    "layer_norm_backward",
    "patch_embed_backward",
  ]) {
    const op = engine[name] as (...args: unknown[]) => unknown;
    engine[name] = (...args: unknown[]) => {
      counts[name] = (counts[name] ?? 0) + 1;
      return op.apply(engine, args);
    };
  }
  return () => {
    const result = counts;
    counts = {};
    return result;
  };
}

test("an int8 model is refused", async () => {
  const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), {
    dtype: "int8",
  });
  const pixel_values = new Tensor("float32", new Float32Array(3072), [1, 3, 32, 32]);
  await expect(compute_gradients(model, { pixel_values, labels: [0] })).rejects.toMatchObject({
    code: "UNSUPPORTED",
  });
  await model.dispose();
});

test("an abort or an error frees everything", async () => {
  const model = await ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"));
  const { handles } = model.memory();
  const pixel_values = new Tensor("float32", new Float32Array(3072), [1, 3, 32, 32]);
  const engine = model.engine as unknown as Record<string, (...args: unknown[]) => unknown>;
  const backward = engine.layer_norm_backward as (...args: unknown[]) => unknown;
  const controller = new AbortController();
  engine.layer_norm_backward = (...args) => {
    controller.abort();
    return backward.apply(engine, args);
  };
  for (const gradient_checkpointing of [false, true]) {
    const inputs = { pixel_values, labels: [1], signal: controller.signal };
    await expect(compute_gradients(model, inputs, { gradient_checkpointing })).rejects.toMatchObject({
      code: "ABORTED",
    });
    expect(model.memory().handles).toBe(handles);
  }
  engine.linear_backward_weights = () => {
    throw new Error("out of luck");
  };
  await expect(compute_gradients(model, { pixel_values, labels: [1] })).rejects.toThrow("out of luck");
  expect(model.memory().handles).toBe(handles);
  await model.dispose();
});
