import { Tensor, ViTMSNForImageClassification, ViTMSNModel, VitMsnError } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Activation, Handle, TensorHandle } from "../../ts/engine/engine.ts";
import type { TrainingEngine } from "../../ts/engine/training_engine.ts";
import { temporary_directory } from "../support/directories.ts";
import { model_files } from "../support/models.ts";
import { abort_at_look, at_look } from "../support/signals.ts";

// An engine in a Worker is the same engine, spoken to by messages.

const CONFIG = {
  hidden_size: 24,
  num_attention_heads: 3,
  num_hidden_layers: 2,
  intermediate_size: 40,
  image_size: 32,
  patch_size: 8,
  num_labels: 5,
  initializer_range: 0.2,
};
const noise = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i * 1.3));
const bytes_of = (values: Float32Array) => new Uint8Array(values.buffer);
const pixel_values = () => new Tensor("float32", noise(2 * 3 * 32 * 32), [2, 3, 32, 32]);

/** The outcome of what fails: it must be ours. */
async function failure(promise: Promise<unknown>): Promise<VitMsnError> {
  const error = await promise.then(
    () => undefined,
    (cause) => cause,
  );
  expect(error).toBeInstanceOf(VitMsnError);
  return error as VitMsnError;
}

function thrown(action: () => unknown): string | undefined {
  try {
    action();
  } catch (error) {
    return (error as VitMsnError).code;
  }
  return undefined;
}

describe("a model whose engine is in a Worker", () => {
  test("answers bit for bit as one on this thread, whatever it is asked", async () => {
    const options = { use_mask_token: true };
    const here = await ViTMSNModel.from_config(CONFIG, options);
    const there = await ViTMSNModel.from_config(CONFIG, { ...options, worker: true });
    expect([here.engine_info.worker, there.engine_info.worker]).toEqual([false, true]);
    expect(there.engine_info).toMatchObject({ level: here.engine_info.level, threads: 1 });
    const inputs = [
      { pixel_values: pixel_values(), output_hidden_states: true, output_attentions: true },
      { pixel_values: pixel_values(), visible_patches: [3, 1, 15] },
      { pixel_values: pixel_values(), bool_masked_pos: [masked(3), masked(9)] },
      {
        pixel_values: new Tensor("float32", noise(3 * 40 * 24), [1, 3, 40, 24]),
        interpolate_pos_encoding: true,
      },
    ];
    for (const input of inputs) expect(await there.forward(input)).toEqual(await here.forward(input));
    for (const pool of ["cls", "mean"] as const)
      expect(await there.get_image_features(inputs[0] as (typeof inputs)[0], pool)).toEqual(
        await here.get_image_features(inputs[0] as (typeof inputs)[0], pool),
      );
    await Promise.all([here.dispose(), there.dispose()]);
  });

  test("computes the losses", async () => {
    const kinds = [
      { num_labels: 5, labels: [4, -100] },
      { num_labels: 1, labels: new Tensor("float32", [0.5, -1], [2, 1]) },
      { num_labels: 2, labels: new Tensor("float32", [0, 1, 1, 0], [2, 2]) },
    ];
    for (const { num_labels, labels } of kinds) {
      const models = await Promise.all(
        [false, true].map((worker) =>
          ViTMSNForImageClassification.from_config({ ...CONFIG, num_labels }, { worker }),
        ),
      );
      const [here, there] = await Promise.all(
        models.map((model) => model.forward({ pixel_values: pixel_values(), labels })),
      );
      expect(there).toEqual(here);
      await Promise.all(models.map((model) => model.dispose()));
    }
  });

  test("is saved as it was", async () => {
    const saved = [];
    for (const worker of [false, true]) {
      const model = await ViTMSNForImageClassification.from_config(CONFIG, { dtype: "int8", worker });
      const directory = await temporary_directory();
      await model.save_pretrained(directory.target);
      saved.push(await directory.read_files());
      await directory.remove();
      await model.dispose();
    }
    expect(saved[1]).toEqual(saved[0]);
  });

  test("runs several forward passes at once, and holds nothing afterwards", async () => {
    const model = await ViTMSNModel.from_config(CONFIG, { worker: true });
    const before = model.memory();
    const alone = await model.forward({ pixel_values: pixel_values() });
    const together = await Promise.all(
      Array.from({ length: 5 }, () => model.forward({ pixel_values: pixel_values() })),
    );
    for (const output of together) expect(output).toEqual(alone);
    // What was freed is reported with the next answer or by itself, soon after.
    await expect.poll(() => model.memory().bytes).toBe(before.bytes);
    expect(model.memory().handles).toBe(before.handles);
    await model.dispose();
  });

  test("an abort ends a forward pass at once, and the model still works", async () => {
    const model = await ViTMSNModel.from_config({ ...CONFIG, num_hidden_layers: 12 }, { worker: true });
    const { handles } = model.memory();
    const expected = await model.forward({ pixel_values: pixel_values() });
    const { signal } = abort_at_look(4);
    const forward = model.forward({ pixel_values: many_images(), signal });
    expect((await failure(forward)).code).toBe("ABORTED");
    expect(model.memory().handles).toBe(handles);
    expect(await model.forward({ pixel_values: pixel_values() })).toEqual(expected);
    await model.dispose();
  });

  test("disposing ends a forward pass at once with DISPOSED", async () => {
    const model = await ViTMSNModel.from_config({ ...CONFIG, num_hidden_layers: 12 }, { worker: true });
    const { signal } = at_look(4, () => void model.dispose());
    const forward = model.forward({ pixel_values: many_images(), signal });
    expect((await failure(forward)).code).toBe("DISPOSED");
    await model.dispose();
    expect((await failure(model.forward({ pixel_values: pixel_values() }))).code).toBe("DISPOSED");
  });

  test("a value that no weight can have ends the loading, with its file and key in the error", async () => {
    const files = await model_files("test/fixtures/tiny", ["config.json", "model.safetensors"]);
    const weights = (files["model.safetensors"] as Uint8Array).slice();
    const start = 8 + Number(new DataView(weights.buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(weights.subarray(8, start)));
    for (const key of Object.keys(header).filter((name) =>
      /layer\.1.*(dense|layernorm_after)\.\w+$/.test(name),
    )) {
      const broken = weights.slice();
      new DataView(broken.buffer).setFloat32(start + header[key].data_offsets[0], Number.NaN, true);
      const source = { ...files, "model.safetensors": broken };
      const error = await failure(ViTMSNForImageClassification.from_pretrained(source, { worker: true }));
      expect(error.code).toBe("INVALID_CHECKPOINT");
      expect(error.message).toContain(`model.safetensors: key "${key}"`);
    }
  });

  test("doesn't change the caller's arrays", async () => {
    const files = await model_files("test/fixtures/tiny", ["config.json", "model.safetensors"]);
    const before = (files["model.safetensors"] as Uint8Array).slice();
    const model = await ViTMSNModel.from_pretrained(files, { worker: true });
    expect(files["model.safetensors"]).toEqual(before);
    const { data } = pixel_values();
    const size = model.config.image_size as number;
    const input = data.slice(0, 3 * size * size);
    const kept = input.slice();
    await model.forward({ pixel_values: new Tensor("float32", input, [1, 3, size, size]) });
    expect(input).toEqual(kept);
    await model.dispose();
  });

  test("worker must be true or false", async () => {
    const options = { worker: "yes" as unknown as boolean };
    expect((await failure(ViTMSNModel.from_config(CONFIG, options))).message).toContain("worker");
  });
});

const masked = (every: number) => Array.from({ length: 16 }, (_, i) => i % every === 0);

/** A second's work. */
function many_images(): Tensor<"float32"> {
  return new Tensor("float32", new Float32Array(1024 * 3 * 32 * 32).fill(0.5), [1024, 3, 32, 32]);
}

describe("the engine in a Worker", () => {
  let models: ViTMSNModel[];
  let here: TrainingEngine;
  let there: TrainingEngine;
  beforeAll(async () => {
    models = await Promise.all([false, true].map((worker) => ViTMSNModel.from_config(CONFIG, { worker })));
    [here, there] = models.map((model) => model.engine as TrainingEngine) as [TrainingEngine, TrainingEngine];
  });
  afterAll(async () => {
    await Promise.all(models.map((model) => model.dispose()));
  });

  /** Ops on both engines: the same dims, known at once, and the same values. */
  test.each(Object.entries(ops()))("knows the dims of %s before it has run", async (_, make) => {
    const made = make(there);
    const expected = make(here);
    for (const [i, x] of made.entries()) {
      const other = expected[i] as TensorHandle;
      expect(there.dims(x)).toEqual(here.dims(other));
      expect(await there.read(x)).toEqual(await here.read(other));
    }
  });

  test("an op that fails is named where its result is awaited, and affects no other value", async () => {
    const x = there.tensor(noise(12), [1, 2, 6]);
    const wrong = there.scaled_dot_product_attention(x, 4);
    const further = there.layer_norm(wrong, x, x, 1e-6);
    const other = there.scaled_dot_product_attention(x, 2);
    for (const waiting of [there.read(wrong), there.ready(wrong), there.read(further)]) {
      const error = await failure(waiting);
      expect(error.code).toBe("INVALID_ARGUMENT");
      expect(error.message).toContain("4 heads");
      expect(error.message).toContain("(in scaled_dot_product_attention)");
    }
    expect((await there.read(other)).length).toBe(4);
    const handles: Handle[] = [x, wrong, further, other];
    for (const handle of handles) there.free(handle);
  });

  test("an op that changes weights fails with them", async () => {
    const weights = there.linear_weights(2, 2, "float32", true);
    there.set_rows(weights, 0, bytes_of(Float32Array.of(1, 2, Number.NaN, 4)), "float32");
    expect(await failure(there.ready(weights))).toMatchObject({ code: "INVALID_CHECKPOINT" });
    expect((await failure(there.get_rows(weights, 0, 1))).message).toContain("(in set_rows)");
    there.free(weights);
  });

  test("a handle that was freed is refused at once", async () => {
    const x = there.tensor(Float32Array.of(1), [1, 1]);
    there.free(x);
    expect(thrown(() => there.dims(x))).toBe("DISPOSED");
    expect(thrown(() => there.free(x))).toBe("DISPOSED");
    expect(thrown(() => there.pool(x, "cls"))).toBe("DISPOSED");
    expect((await failure(there.read(x))).code).toBe("DISPOSED");
  });

  test("uses values as they are at the call", async () => {
    const values = Float32Array.of(1, 2);
    const x = there.tensor(values, [2]);
    values.fill(0);
    expect(await there.read(x)).toEqual(Float32Array.of(1, 2));
    const part = new Float32Array([9, 8, 7, 6]).subarray(1, 3);
    expect(await there.read(there.tensor(part, [2]))).toEqual(Float32Array.of(8, 7));
  });
});

function ops(): Record<string, (engine: TrainingEngine) => TensorHandle[]> {
  const tokens = (engine: TrainingEngine) => engine.tensor(noise(2 * 5 * 6), [2, 5, 6]);
  const vector = (engine: TrainingEngine) => engine.tensor(noise(6), [6]);
  const linear = (engine: TrainingEngine, out: number, inputs: number) => {
    const weights = engine.linear_weights(out, inputs, "float32", true);
    engine.set_rows(weights, 0, bytes_of(noise(out * inputs)), "float32");
    engine.set_bias(weights, 0, bytes_of(noise(out)), "float32");
    return weights;
  };
  const parameter = (engine: TrainingEngine, dims: number[]) =>
    engine.parameter(bytes_of(noise(dims.reduce((a, b) => a * b))), "float32", "float16", dims);
  return {
    parameter: (engine) => [parameter(engine, [1, 7, 2])],
    ...Object.fromEntries(
      (["identity", "gelu"] as Activation[]).map((activation) => [
        `linear, ${activation}`,
        (engine: TrainingEngine) => [engine.linear(tokens(engine), linear(engine, 4, 6), activation)],
      ]),
    ),
    "linear with residual": (engine) => [
      engine.linear(tokens(engine), linear(engine, 6, 6), "identity", tokens(engine)),
    ],
    layer_norm: (engine) => [engine.layer_norm(tokens(engine), vector(engine), vector(engine), 1e-6)],
    scaled_dot_product_attention: (engine) => [engine.scaled_dot_product_attention(tokens(engine), 2)],
    eager_attention: (engine) => {
      const { context, probs } = engine.eager_attention(tokens(engine), 2);
      return [context, probs];
    },
    patch_embed: (engine) => {
      const pixels = engine.tensor(noise(2 * 3 * 9 * 7), [2, 3, 9, 7]);
      return [engine.patch_embed(pixels, linear(engine, 4, 3 * 2 * 3), { height: 2, width: 3 })];
    },
    embed_tokens: (engine) => {
      const positions = engine.tensor(noise(6 * 6), [1, 6, 6]);
      const mask = Uint8Array.of(1, 0, 0, 0, 0, 1, 1, 0, 0, 0);
      const masked = { mask, mask_token: vector(engine) };
      return [
        engine.embed_tokens(tokens(engine), vector(engine), positions),
        engine.embed_tokens(tokens(engine), vector(engine), positions, masked),
      ];
    },
    take_tokens: (engine) => [engine.take_tokens(tokens(engine), Uint32Array.of(3, 0, 1, 2), 2)],
    interpolate_positions: (engine) => [
      engine.interpolate_positions(
        engine.tensor(noise(7 * 4), [1, 7, 4]),
        { height: 2, width: 3 },
        { height: 4, width: 5 },
      ),
    ],
    pool: (engine) => [engine.pool(tokens(engine), "cls"), engine.pool(tokens(engine), "mean")],
    losses: (engine) => {
      const logits = () => engine.tensor(noise(6), [2, 3]);
      return [
        engine.cross_entropy(logits(), Int32Array.of(2, -100)),
        engine.mse_loss(logits(), engine.tensor(new Float32Array(6), [2, 3])),
        engine.bce_with_logits(logits(), engine.tensor(new Float32Array(6).fill(1), [2, 3])),
      ];
    },
    "weights as tensors": (engine) => {
      const weights = linear(engine, 4, 6);
      engine.set_linear(weights, engine.tensor(noise(24), [4, 6]), engine.tensor(noise(4), [4]));
      return [engine.linear_weight(weights), engine.linear_bias(weights)];
    },
    activate: (engine) => [
      engine.activate(tokens(engine), "gelu"),
      engine.activate_backward(tokens(engine), tokens(engine), "gelu"),
    ],
    linear_backward: (engine) => {
      const grad = engine.tensor(noise(2 * 5 * 4), [2, 5, 4]);
      const { weight, bias } = engine.linear_backward_weights(grad, tokens(engine));
      return [engine.linear_backward_input(grad, linear(engine, 4, 6)), weight, bias];
    },
    layer_norm_backward: (engine) => {
      const { x, weight, bias } = engine.layer_norm_backward(
        tokens(engine),
        tokens(engine),
        vector(engine),
        1e-6,
      );
      return [x, weight, bias];
    },
    attention_backward: (engine) => {
      const qkv = tokens(engine);
      const { context, probs } = engine.eager_attention(qkv, 2);
      return [
        engine.scaled_dot_product_attention_backward(context, qkv, context, 2),
        engine.eager_attention_backward(context, qkv, probs, 2),
      ];
    },
    patch_embed_backward: (engine) => {
      const pixels = engine.tensor(noise(2 * 3 * 9 * 7), [2, 3, 9, 7]);
      const grad = engine.tensor(noise(2 * 8 * 4), [2, 8, 4]);
      const { weight, bias } = engine.patch_embed_backward(grad, pixels, { height: 2, width: 3 });
      return [weight, bias];
    },
    embed_tokens_backward: (engine) => {
      const plain = engine.embed_tokens_backward(tokens(engine));
      expect(plain.mask_token).toBeUndefined();
      const mask = Uint8Array.of(1, 0, 0, 0, 1, 0, 0, 0);
      const masked = engine.embed_tokens_backward(tokens(engine), mask);
      return [plain, masked].flatMap(({ patches, cls_token, positions, mask_token }) => [
        patches,
        cls_token,
        positions,
        ...(mask_token === undefined ? [] : [mask_token]),
      ]);
    },
    take_tokens_backward: (engine) => [
      engine.take_tokens_backward(tokens(engine), Uint32Array.of(3, 0, 1, 2, 6, 5, 4, 2), 4, 8),
    ],
    interpolate_positions_backward: (engine) => [
      engine.interpolate_positions_backward(
        engine.tensor(noise(21 * 4), [1, 21, 4]),
        { height: 2, width: 3 },
        { height: 4, width: 5 },
      ),
    ],
    pool_backward: (engine) => [
      engine.pool_backward(engine.tensor(noise(12), [2, 6]), "cls", 3),
      engine.pool_backward(engine.tensor(noise(12), [2, 6]), "mean", 3),
    ],
    "gradients of losses": (engine) => {
      const logits = () => engine.tensor(noise(6), [2, 3]);
      const labels = Int32Array.of(2, -100);
      return [
        engine.cross_entropy_smoothed(logits(), labels, 0.1),
        engine.cross_entropy_backward(logits(), labels, 0.1),
        engine.mse_loss_backward(logits(), engine.tensor(new Float32Array(6), [2, 3])),
        engine.bce_with_logits_backward(logits(), engine.tensor(new Float32Array(6).fill(1), [2, 3])),
      ];
    },
    "steps of optimisers": (engine) => {
      const [parameter, gradient, m, v] = Array.from({ length: 4 }, () => vector(engine)) as [
        TensorHandle,
        TensorHandle,
        TensorHandle,
        TensorHandle,
      ];
      engine.accumulate(gradient, m, 0.5);
      const shared = { learning_rate: 0.1, weight_decay: 0.1, gradient_scale: 1 };
      engine.adamw_step(parameter, gradient, v, engine.activate(v, "relu"), {
        ...shared,
        ...{ beta1: 0.9, beta2: 0.99, epsilon: 1e-8, step: 1 },
      });
      engine.sgd_step(parameter, gradient, m, { ...shared, momentum: 0.9, nesterov: true, first: true });
      engine.lars_step(parameter, gradient, m, {
        ...shared,
        ...{ momentum: 0.9, trust_coefficient: 1e-3, epsilon: 1e-8 },
      });
      return [parameter, engine.add(m, v), engine.sum_of_squares(m), engine.dropout(m, 0.5, 7)];
    },
  };
}
