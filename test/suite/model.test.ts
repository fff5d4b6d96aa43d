import { env, Tensor, ViTMSNConfig, ViTMSNForImageClassification, ViTMSNModel, VitMsnError } from "vit-msn";
import { afterEach, describe, expect, test, vi } from "vitest";
import { fixture_files } from "../support/models.ts";
import { error_of } from "../support/rejections.ts";
import { abort_at_look, at_look } from "../support/signals.ts";
import { max_difference, read_tensors } from "../support/tensors.ts";

const TINY = {
  hidden_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  intermediate_size: 24,
  image_size: 8,
  patch_size: 4,
  num_labels: 3,
};

/** Takes long enough to be interrupted. */
const DEEP = { ...TINY, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 40, image_size: 96 };

function pixels(dims: number[], fill: (i: number) => number = (i) => Math.sin(i)): Tensor<"float32"> {
  const size = dims.reduce((a, b) => a * b, 1);
  return new Tensor(
    "float32",
    Float32Array.from({ length: size }, (_, i) => fill(i)),
    dims,
  );
}

const warn = env.warn;
afterEach(() => {
  env.warn = warn;
});

test.each([ViTMSNModel, ViTMSNForImageClassification])(
  "%o isn't constructed of a config, as in Python",
  (Model) => {
    const construct = () => Reflect.construct(Model, [new ViTMSNConfig(TINY)]);
    expect(construct).toThrow(/use \w+\.from_pretrained\(source\) or \w+\.from_config\(config\)/);
    expect(construct).toThrow(VitMsnError);
  },
);

describe("forward", () => {
  test("returns only what was asked for", async () => {
    const model = await ViTMSNModel.from_config(TINY);
    const output = await model.forward({ pixel_values: pixels([1, 3, 8, 8]) });
    expect(Object.keys(output)).toEqual(["last_hidden_state"]);
    expect(output.last_hidden_state.dims).toEqual([1, 5, 16]);
    expect(output.last_hidden_state.type).toBe("float32");
    expect(await output.last_hidden_state.getData()).toBeInstanceOf(Float32Array);
    await model.dispose();
  });

  test("takes output_hidden_states and output_attentions from the config when the call doesn't say", async () => {
    const model = await ViTMSNModel.from_config({
      ...TINY,
      output_hidden_states: true,
      output_attentions: true,
    });
    const output = await model.forward({ pixel_values: pixels([1, 3, 8, 8]) });
    expect(output.hidden_states).toHaveLength(3);
    expect(output.attentions?.map(({ dims }) => dims)).toEqual([
      [1, 2, 5, 5],
      [1, 2, 5, 5],
    ]);
    const plain = { output_hidden_states: false, output_attentions: false };
    expect(Object.keys(await model.forward({ pixel_values: pixels([1, 3, 8, 8]), ...plain }))).toHaveLength(
      1,
    );
    await model.dispose();
  });

  test("is the same as calling the model", async () => {
    const model = await ViTMSNModel.from_config(TINY);
    const pixel_values = pixels([2, 3, 8, 8]);
    expect(model).toBeInstanceOf(ViTMSNModel);
    const [a, b] = [await model({ pixel_values }), await model.forward({ pixel_values })];
    expect(a.last_hidden_state.data).toEqual(b.last_hidden_state.data);
    await model.dispose();
  });

  test("gives the images of a batch what it gives each alone", async () => {
    const model = await ViTMSNForImageClassification.from_config({ ...TINY, image_size: 20 });
    const batch = pixels([3, 3, 20, 20]);
    const { logits } = await model.forward({ pixel_values: batch });
    for (let i = 0; i < 3; i++) {
      const one = new Tensor("float32", batch.data.slice(i * 1200, (i + 1) * 1200), [1, 3, 20, 20]);
      const single = (await model.forward({ pixel_values: one })).logits;
      expect(max_difference(single.data, logits.data.subarray(i * 3, (i + 1) * 3))).toBeLessThan(1e-6);
    }
    await model.dispose();
  });

  test("runs several calls at once without mixing them", async () => {
    const model = await ViTMSNForImageClassification.from_config({ ...TINY, image_size: 64 });
    const inputs = Array.from({ length: 6 }, (_, k) => pixels([1, 3, 64, 64], (i) => Math.cos(i * (k + 1))));
    const alone = [];
    for (const pixel_values of inputs) alone.push((await model.forward({ pixel_values })).logits.data);
    const together = await Promise.all(inputs.map((pixel_values) => model.forward({ pixel_values })));
    expect(together.map(({ logits }) => logits.data)).toEqual(alone);
    await model.dispose();
  });

  test.each([{ worker: false }, { worker: true }])(
    "runs several calls at once in their order, one after another: %o",
    async (options) => {
      const model = await ViTMSNForImageClassification.from_config(TINY, options);
      const { engine } = model;
      const events: string[] = [];
      for (const op of ["patch_embed", "read"] as const) {
        const run = engine[op].bind(engine) as (...args: unknown[]) => never;
        Object.assign(engine, {
          [op]: (...args: unknown[]) => {
            events.push(op);
            return run(...args);
          },
        });
      }
      const answered: number[] = [];
      const inputs = { pixel_values: pixels([1, 3, 8, 8]) };
      await Promise.all([0, 1, 2, 3].map((k) => model.forward(inputs).then(() => answered.push(k))));
      expect(answered).toEqual([0, 1, 2, 3]);
      expect(events).toEqual([0, 1, 2, 3].flatMap(() => ["patch_embed", "read"]));
      await model.dispose();
    },
  );

  test("a call that waits for others is aborted at once, and later ones still run", async () => {
    const model = await ViTMSNForImageClassification.from_config(TINY);
    const inputs = { pixel_values: pixels([1, 3, 8, 8]) };
    const controller = new AbortController();
    const answered: string[] = [];
    const first = model.forward(inputs).then(() => answered.push("first"));
    const second = error_of(model.forward({ ...inputs, signal: controller.signal })).then(({ code }) =>
      answered.push(code),
    );
    const third = model.forward(inputs).then(() => answered.push("third"));
    controller.abort();
    await Promise.all([first, second, third]);
    expect(answered.toSorted()).toEqual(["ABORTED", "first", "third"]);
    await model.dispose();
  });

  test("frees every activation, after success and after failure", async () => {
    const model = await ViTMSNForImageClassification.from_config(TINY);
    const { handles } = model.memory();
    await model.forward({ pixel_values: pixels([2, 3, 8, 8]), labels: [0, 2], output_attentions: true });
    expect(model.memory().handles).toBe(handles);
    await error_of(model.forward({ pixel_values: pixels([2, 3, 8, 8]), labels: [0, 3] }));
    expect(model.memory().handles).toBe(handles);
    await model.dispose();
  });
});

describe("invalid inputs are refused, and the model still works", () => {
  const cases: [string, object, string][] = [
    ["no tensor", { pixel_values: new Float32Array(192) }, "must be a Tensor"],
    ["nothing", {}, "must be a Tensor"],
    ["bytes", { pixel_values: new Tensor("uint8", new Uint8Array(192), [1, 3, 8, 8]) }, "float32"],
    ["no batch", { pixel_values: pixels([3, 8, 8]) }, "[batch, channels, height, width]"],
    ["an empty batch", { pixel_values: pixels([0, 3, 8, 8]) }, "[0, 3, 8, 8]"],
    ["grey", { pixel_values: pixels([1, 1, 8, 8]) }, "1 channels, but the model takes 3"],
    ["another size", { pixel_values: pixels([1, 3, 8, 12]) }, "(8×12) doesn't match the model's (8×8)"],
    [
      "less than a patch",
      { pixel_values: pixels([1, 3, 3, 8]), interpolate_pos_encoding: true },
      "smaller than one patch",
    ],
    ["NaN", { pixel_values: pixels([1, 3, 8, 8], (i) => (i === 7 ? Number.NaN : 0)) }, "NaN at index 7"],
    [
      "infinity",
      { pixel_values: pixels([1, 3, 8, 8], () => Number.NEGATIVE_INFINITY) },
      "-Infinity at index 0",
    ],
    [
      "a mask without a mask token",
      { pixel_values: pixels([1, 3, 8, 8]), bool_masked_pos: [[1, 0, 0, 0]] },
      "mask token",
    ],
    [
      "labels of another batch",
      { pixel_values: pixels([1, 3, 8, 8]), labels: [0, 1] },
      "one class index per image",
    ],
    ["labels out of range", { pixel_values: pixels([1, 3, 8, 8]), labels: [3] }, "0 to 2"],
    ["negative labels", { pixel_values: pixels([1, 3, 8, 8]), labels: [-1] }, "-1"],
    ["NaN labels", { pixel_values: pixels([1, 3, 8, 8]), labels: [[Number.NaN, 0, 1]] }, "labels"],
    ["labels that are no labels", { pixel_values: pixels([1, 3, 8, 8]), labels: "cat" }, "labels"],
  ];
  test.each(cases)("%s", async (_, inputs, sentence) => {
    const model = await ViTMSNForImageClassification.from_config(TINY);
    const error = await error_of(model.forward(inputs as never));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toContain(sentence);
    const { logits } = await model.forward({ pixel_values: pixels([1, 3, 8, 8]) });
    expect(logits.data.every(Number.isFinite)).toBe(true);
    await model.dispose();
  });

  test("arguments that are no object", async () => {
    const model = await ViTMSNModel.from_config(TINY);
    expect((await error_of(Promise.resolve().then(() => model.forward(null as never)))).code).toBe(
      "INVALID_ARGUMENT",
    );
    await model.dispose();
  });

  test.each([
    ["another shape", [[1, 0, 0]]],
    ["ragged rows", [[1, 0, 0, 0], [1]]],
    ["values other than 0 and 1", [[1, 0, 0.5, 0]]],
  ])("a mask with %s", async (_, bool_masked_pos) => {
    const model = await ViTMSNModel.from_config(TINY, { use_mask_token: true });
    const error = await error_of(model.forward({ pixel_values: pixels([1, 3, 8, 8]), bool_masked_pos }));
    expect(error.message).toContain("bool_masked_pos");
    await model.dispose();
  });

  test("a batch that no memory can hold", async () => {
    const model = await ViTMSNModel.from_config(
      { ...TINY, patch_size: 1, num_attention_heads: 16 },
      { attn_implementation: "eager" },
    );
    // 12,545 tokens: the attention probabilities alone would take 10 GB.
    const inputs = { pixel_values: pixels([1, 3, 112, 112], () => 0), interpolate_pos_encoding: true };
    expect((await error_of(model.forward(inputs))).code).toBe("OUT_OF_MEMORY");
    const { last_hidden_state } = await model.forward({ pixel_values: pixels([1, 3, 8, 8]) });
    expect(last_hidden_state.dims).toEqual([1, 65, 16]);
    await model.dispose();
  });
});

describe("losses", () => {
  test("an unset problem_type is chosen as in the reference and written to the config", async () => {
    for (const [num_labels, labels, expected] of [
      [1, [0.5], "regression"],
      [3, [2], "single_label_classification"],
      [3, new Tensor("int64", BigInt64Array.of(2n), [1]), "single_label_classification"],
      [3, new Tensor("int32", Int32Array.of(2), [1]), "single_label_classification"],
      [3, new Tensor("float32", Float32Array.of(1, 0, 1), [1, 3]), "multi_label_classification"],
      [3, [[1, 0, 1]], "multi_label_classification"],
    ] as const) {
      const model = await ViTMSNForImageClassification.from_config({ ...TINY, num_labels });
      expect(model.config.problem_type).toBeNull();
      const { loss } = await model.forward({ pixel_values: pixels([1, 3, 8, 8]), labels });
      expect(loss?.dims).toEqual([1]);
      expect(model.config.problem_type).toBe(expected);
      await model.dispose();
    }
  });

  test("-100 leaves an image out of the mean", async () => {
    const model = await ViTMSNForImageClassification.from_config(TINY);
    const pixel_values = pixels([2, 3, 8, 8]);
    const first = new Tensor("float32", pixel_values.data.slice(0, 192), [1, 3, 8, 8]);
    const both = await model.forward({ pixel_values, labels: [1, -100] });
    const one = await model.forward({ pixel_values: first, labels: [1] });
    expect(both.loss?.data[0]).toBeCloseTo(one.loss?.data[0] as number, 6);
    await model.dispose();
  });
});

describe("loading", () => {
  test("a backbone into a classifier initialises the head once, with a warning, and the same way each time", async () => {
    const warnings = vi.fn();
    env.warn = warnings;
    const options = { config: { num_labels: 3, id2label: { 0: "a", 1: "b", 2: "c" } } };
    const files = await fixture_files("backbone");
    const model = await ViTMSNForImageClassification.from_pretrained(files, options);
    expect(warnings).toHaveBeenCalledTimes(1);
    expect(warnings.mock.calls[0]?.[0]).toMatch(/classifier\.weight, classifier\.bias/);
    const again = await ViTMSNForImageClassification.from_pretrained(files, options);
    const pixel_values = pixels([1, 3, 32, 32]);
    const [a, b] = [await model.forward({ pixel_values }), await again.forward({ pixel_values })];
    expect(a.logits.dims).toEqual([1, 3]);
    expect(a.logits.data).toEqual(b.logits.data);
    expect(model.config.id2label[1]).toBe("b");
    await Promise.all([model.dispose(), again.dispose()]);
  });

  test("a classifier's checkpoint into a backbone takes the backbone, silently", async () => {
    const warnings = vi.fn();
    env.warn = warnings;
    const model = await ViTMSNModel.from_pretrained(await fixture_files("tiny"));
    const expected = await read_tensors("test/fixtures/tiny/expected.safetensors");
    const pixel_values = new Tensor(
      "float32",
      expected.get("in.pixel_values")?.data as Float32Array,
      [3, 3, 32, 32],
    );
    const { hidden_states } = await model.forward({ pixel_values, output_hidden_states: true });
    const last = expected.get("out.hidden_states.3")?.data as Float32Array;
    expect(max_difference(hidden_states?.[3]?.data as Float32Array, last)).toBeLessThan(1e-4);
    expect(warnings).not.toHaveBeenCalled();
    await model.dispose();
  });

  test("missing, misshapen and unexpected keys are reported together", async () => {
    const files = await fixture_files("tiny");
    const config = JSON.parse(new TextDecoder().decode(files["config.json"]));
    Object.assign(config, { num_hidden_layers: 4, intermediate_size: 95 });
    const bad = { ...files, "config.json": new TextEncoder().encode(JSON.stringify(config)) };
    const error = await error_of(ViTMSNForImageClassification.from_pretrained(bad));
    expect(error.code).toBe("CHECKPOINT_MISMATCH");
    expect(error.message).toContain("missing keys: encoder.layer.3.layernorm_before.weight");
    expect(error.message).toContain(
      "vit.encoder.layer.0.intermediate.dense.weight is [96, 48], expected [95, 48]",
    );
    const fewer = { ...config, num_hidden_layers: 2, intermediate_size: 95 };
    const worse = { ...files, "config.json": new TextEncoder().encode(JSON.stringify(fewer)) };
    const second = await error_of(ViTMSNForImageClassification.from_pretrained(worse));
    expect(second.message).toContain("unexpected keys: vit.encoder.layer.2.");
    expect(second.details).toHaveProperty("mismatched_keys");
  });

  test.each(["overrides", "a whole config"] as const)(
    "with another image_size in %s, positions are interpolated as PyTorch does",
    async (kind) => {
      const files = await fixture_files("interpolate");
      const expected = await read_tensors("test/fixtures/interpolate/expected.safetensors");
      const { data, dims } = expected.get("in.pixel_values") as { data: Float32Array; dims: number[] };
      const image_size = dims.slice(2) as [number, number];
      const fields = JSON.parse(new TextDecoder().decode(files["config.json"]));
      const config = kind === "overrides" ? { image_size } : new ViTMSNConfig({ ...fields, image_size });
      for (const dtype of ["float32", "float16", "int8"] as const) {
        const model = await ViTMSNForImageClassification.from_pretrained(files, { config, dtype });
        const stored = await ViTMSNForImageClassification.from_pretrained(files, { dtype });
        const pixel_values = new Tensor("float32", data, dims);
        const { logits } = await model.forward({ pixel_values });
        const other = await stored.forward({ pixel_values, interpolate_pos_encoding: true });
        expect(max_difference(logits.data, other.logits.data)).toBeLessThan(1e-6);
        if (dtype === "float32")
          expect(max_difference(logits.data, expected.get("out.logits")?.data as Float32Array)).toBeLessThan(
            1e-4,
          );
        await Promise.all([model.dispose(), stored.dispose()]);
      }
    },
  );

  test("positions that contradict their own config.json don't fit", async () => {
    const files = await fixture_files("tiny");
    const fields = JSON.parse(new TextDecoder().decode(files["config.json"]));
    const encode = (config: object) => new TextEncoder().encode(JSON.stringify(config));
    const wrong = { ...files, "config.json": encode({ ...fields, image_size: 64 }) };
    const message = /position_embeddings is \[1, 17, 48\], expected \[1, 65, 48\]/;
    expect((await error_of(ViTMSNForImageClassification.from_pretrained(wrong))).message).toMatch(message);
    // Nor does a grid of another shape with the same number of patches.
    const config = { image_size: 64 };
    const rect = { ...files, "config.json": encode({ ...fields, image_size: [16, 80] }) };
    expect((await error_of(ViTMSNForImageClassification.from_pretrained(rect, { config }))).message).toMatch(
      message,
    );
  });

  test("ignore_mismatched_sizes initialises a head of another size", async () => {
    env.warn = vi.fn();
    const files = await fixture_files("tiny");
    const config = { num_labels: 2 };
    expect(
      (await error_of(ViTMSNForImageClassification.from_pretrained(files, { config }))).message,
    ).toContain("classifier.weight is [7, 48], expected [2, 48]");
    const model = await ViTMSNForImageClassification.from_pretrained(files, {
      config,
      ignore_mismatched_sizes: true,
    });
    expect((await model.forward({ pixel_values: pixels([1, 3, 32, 32]) })).logits.dims).toEqual([1, 2]);
    expect(env.warn).toHaveBeenCalledOnce();
    await model.dispose();
  });

  test.each([
    [{ dtype: "float64" }, "INVALID_ARGUMENT", "float64"],
    [{ device: "cuda" }, "INVALID_ARGUMENT", "cuda"],
    [{ attn_implementation: "flash" }, "INVALID_ARGUMENT", "flash"],
    [{ num_threads: 0 }, "INVALID_ARGUMENT", "num_threads"],
    [{ num_threads: 1.5 }, "INVALID_ARGUMENT", "1.5"],
  ])("refuses %o", async (options, code, word) => {
    const error = await error_of(
      ViTMSNForImageClassification.from_pretrained(await fixture_files("tiny"), options as never),
    );
    expect(error.code).toBe(code);
    expect(error.message).toContain(word);
  });

  test("accepts the short dtype names and the device names", async () => {
    const files = await fixture_files("tiny");
    for (const [dtype, full] of [
      ["fp32", "float32"],
      ["fp16", "float16"],
      ["bf16", "bfloat16"],
    ] as const) {
      const model = await ViTMSNForImageClassification.from_pretrained(files, { dtype, device: "auto" });
      expect([model.dtype, model.device]).toEqual([full, "wasm"]);
      await model.dispose();
    }
  });

  test("half precision halves the weights' memory", async () => {
    const files = await fixture_files("odd_heads");
    const bytes: number[] = [];
    for (const dtype of ["float32", "float16", "bfloat16"] as const) {
      const model = await ViTMSNForImageClassification.from_pretrained(files, { dtype });
      bytes.push(model.memory().bytes);
      await model.dispose();
    }
    const [full, half, brain] = bytes as [number, number, number];
    expect(half).toBeLessThan(0.65 * full);
    expect(brain).toBe(half);
  });

  test("weights that aren't finite, or don't fit float16, name their file and key", async () => {
    const files = await fixture_files("tiny");
    for (const [value, dtype, word] of [
      [Number.NaN, "float32", "NaN"],
      [1e6, "float16", "1e6"],
    ] as const) {
      const bytes = files["model.safetensors"]?.slice() as Uint8Array;
      new DataView(bytes.buffer).setFloat32(bytes.length - 4, value, true);
      const bad = { ...files, "model.safetensors": bytes };
      const error = await error_of(ViTMSNForImageClassification.from_pretrained(bad, { dtype }));
      expect(error.code).toBe("INVALID_CHECKPOINT");
      expect(error.message).toContain("model.safetensors");
      expect(error.message).toContain(word);
      expect(error.details).toHaveProperty("key");
    }
  });

  test("the error of a source without a config names what is missing", async () => {
    const error = await error_of(ViTMSNModel.from_pretrained({}));
    expect(error.code).toBe("NOT_FOUND");
    expect(error.message).toContain("config.json");
  });

  test("reports progress and ends with ready", async () => {
    const seen: string[] = [];
    const model = await ViTMSNModel.from_pretrained(await fixture_files("tiny"), {
      progress_callback: ({ status, file }) => seen.push(`${status} ${file ?? ""}`.trim()),
    });
    expect(seen.at(-1)).toBe("ready");
    expect(seen).toContain("done model.safetensors");
    await model.dispose();
  });
});

describe("abort and dispose", () => {
  test("a signal that has fired stops loading and a forward pass", async () => {
    const files = await fixture_files("tiny");
    const signal = AbortSignal.abort(new Error("enough"));
    const error = await error_of(ViTMSNModel.from_pretrained(files, { signal }));
    expect(error.code).toBe("ABORTED");
    expect((error.cause as Error).message).toBe("enough");
    const model = await ViTMSNModel.from_pretrained(files);
    expect((await error_of(model.forward({ pixel_values: pixels([1, 3, 32, 32]), signal }))).code).toBe(
      "ABORTED",
    );
    await model.dispose();
  });

  test("a signal that fires during a forward pass stops it between layers, and the model still works", async () => {
    const model = await ViTMSNModel.from_config(DEEP);
    const { handles } = model.memory();
    const pixel_values = pixels([2, 3, 96, 96]);
    const layer = 4;
    const { signal, looks } = abort_at_look(layer);
    expect((await error_of(model.forward({ pixel_values, signal }))).code).toBe("ABORTED");
    expect(looks()).toBe(layer);
    expect(model.memory().handles).toBe(handles);
    await model.forward({ pixel_values });
    await model.dispose();
  });

  test("a disposed model throws DISPOSED, and may be disposed again", async () => {
    const model = await ViTMSNModel.from_config(TINY);
    const { last_hidden_state } = await model.forward({ pixel_values: pixels([1, 3, 8, 8]) });
    await model.dispose();
    await model.dispose();
    const forward = Promise.resolve().then(() => model.forward({ pixel_values: pixels([1, 3, 8, 8]) }));
    expect((await error_of(forward)).code).toBe("DISPOSED");
    expect(() => model.memory()).toThrow(VitMsnError);
    expect(last_hidden_state.data.every(Number.isFinite)).toBe(true);
  });

  test("disposing during a forward pass ends it with DISPOSED", async () => {
    const model = await ViTMSNModel.from_config(DEEP);
    const { signal } = at_look(4, () => void model.dispose());
    const forward = model.forward({ pixel_values: pixels([2, 3, 96, 96]), signal });
    expect((await error_of(forward)).code).toBe("DISPOSED");
  });
});

test("from_config makes the same model from the same seed", async () => {
  const config = new ViTMSNConfig(TINY);
  const pixel_values = pixels([1, 3, 8, 8]);
  const outputs = [];
  for (const seed of [1, 1, 2]) {
    const model = await ViTMSNModel.from_config(config, { seed });
    outputs.push((await model.forward({ pixel_values })).last_hidden_state.data);
    await model.dispose();
  }
  expect(outputs[0]).toEqual(outputs[1]);
  expect(outputs[0]).not.toEqual(outputs[2]);
});
