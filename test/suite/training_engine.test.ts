import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ACTIVATIONS, type LinearHandle, type TensorHandle } from "../../ts/engine/engine.ts";
import { load_wasm_module } from "../../ts/engine/wasm/load_wasm.ts";
import { create_wasm_engine, type WasmEngine } from "../../ts/engine/wasm/wasm_engine.ts";
import type { VitMsnError } from "../../ts/errors.ts";
import { read_file } from "../support/files.ts";
import { runnable_levels } from "../support/levels.ts";

/** Values in -1..1 that look random and are the same on every run. */
function values(count: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed * 2654435761 + 12345;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const size_of = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);

const LEVELS = await runnable_levels("simd128", "relaxed", "simd128_threads", "relaxed_threads");

describe.each(LEVELS)("learning on %s", (level) => {
  let engine: WasmEngine;
  beforeAll(async () => {
    const bytes = new Uint8Array(await read_file(`dist/vit_msn_${level}.wasm`));
    engine = create_wasm_engine(await load_wasm_module(bytes));
  });
  afterAll(() => engine.dispose());

  const tensor = (dims: readonly number[], seed: number) => engine.tensor(values(size_of(dims), seed), dims);

  /** Reads and frees. */
  async function take(handle: TensorHandle): Promise<Float32Array> {
    const copy = await engine.read(handle);
    engine.free(handle);
    return copy;
  }

  /**
   * Checks a gradient by central differences of Σ grad · op(x). All is float32: the step is large, and what is left of
   * curvature and rounding is far below the error that a wrong formula or a wrong argument makes.
   */
  async function expect_gradient(
    op: (x: TensorHandle) => TensorHandle,
    backward: (grad: TensorHandle, x: TensorHandle) => TensorHandle,
    dims: readonly number[],
  ): Promise<void> {
    const x = values(size_of(dims), 1);
    const y = op(engine.tensor(x, dims));
    const out_dims = engine.dims(y);
    const grad = values((await take(y)).length, 2);
    const actual_handle = backward(engine.tensor(grad, out_dims), engine.tensor(x, dims));
    expect(engine.dims(actual_handle)).toEqual([...dims]);
    const actual = await take(actual_handle);
    const loss = async (moved: Float32Array<ArrayBuffer>) => {
      const input = engine.tensor(moved, dims);
      const out = await take(op(input));
      engine.free(input);
      return out.reduce((sum, value, i) => sum + value * (grad[i] as number), 0);
    };
    const step = 2 ** -7;
    const expected = new Float32Array(x.length);
    for (let i = 0; i < x.length; i += 1) {
      const [up, down] = [Float32Array.from(x), Float32Array.from(x)];
      up[i] = (x[i] as number) + step;
      down[i] = (x[i] as number) - step;
      const width = (up[i] as number) - (down[i] as number);
      expected[i] = ((await loss(up)) - (await loss(down))) / width;
    }
    const largest = Math.max(...expected.map(Math.abs));
    for (const [i, value] of actual.entries()) {
      expect(Math.abs(value - (expected[i] as number))).toBeLessThan(2e-3 * (1 + largest));
    }
  }

  /** A loss's gradient times the gradient [1] by the loss: values(1, 2), as `expect_gradient` gives it. */
  function scaled(gradient: TensorHandle): TensorHandle {
    const dims = engine.dims(gradient);
    const zeros = engine.tensor(new Float32Array(size_of(dims)), dims);
    engine.accumulate(zeros, gradient, values(1, 2)[0] as number);
    engine.free(gradient);
    return zeros;
  }

  function linear(out_features: number, in_features: number, seed: number): LinearHandle {
    const layer = engine.linear_weights(out_features, in_features, "float32", true);
    engine.set_linear(layer, tensor([out_features, in_features], seed), tensor([out_features], seed + 1));
    return layer;
  }

  test("activations", async () => {
    for (const activation of ACTIVATIONS) {
      await expect_gradient(
        (x) => engine.activate(x, activation),
        (grad, x) => engine.activate_backward(grad, x, activation),
        [3, 7],
      );
    }
  });

  test("linear layers", async () => {
    const layer = linear(19, 13, 5);
    const identity = (x: TensorHandle) => engine.linear(x, layer, "identity");
    await expect_gradient(identity, (grad) => engine.linear_backward_input(grad, layer), [2, 3, 13]);
    const x = tensor([2, 3, 13], 9);
    const trained = engine.linear_weights(19, 13, "float32", true);
    const bias = tensor([19], 6);
    await expect_gradient(
      (weight) => {
        engine.set_linear(trained, weight, bias);
        return engine.linear(x, trained, "identity");
      },
      (grad) => engine.linear_backward_weights(grad, x).weight,
      [19, 13],
    );
    const weight = tensor([19, 13], 5);
    await expect_gradient(
      (bias) => {
        engine.set_linear(trained, weight, bias);
        return engine.linear(x, trained, "identity");
      },
      (grad) => engine.linear_backward_weights(grad, x).bias,
      [19],
    );
    expect(await take(engine.linear_weight(layer))).toEqual(values(19 * 13, 5));
    expect(await take(engine.linear_bias(layer))).toEqual(values(19, 6));
  });

  test("layer norm", async () => {
    const [x, weight, bias] = [tensor([3, 9], 3), tensor([9], 4), tensor([9], 5)];
    const run = (x: TensorHandle, w: TensorHandle, b: TensorHandle) => engine.layer_norm(x, w, b, 0.5);
    const back = (grad: TensorHandle, x: TensorHandle, w: TensorHandle) =>
      engine.layer_norm_backward(grad, x, w, 0.5);
    await expect_gradient(
      (x) => run(x, weight, bias),
      (grad, x) => back(grad, x, weight).x,
      [3, 9],
    );
    await expect_gradient(
      (w) => run(x, w, bias),
      (grad, w) => back(grad, x, w).weight,
      [9],
    );
    await expect_gradient(
      (b) => run(x, weight, b),
      (grad) => back(grad, x, weight).bias,
      [9],
    );
  });

  test("both attentions", async () => {
    await expect_gradient(
      (qkv) => engine.scaled_dot_product_attention(qkv, 2),
      (grad, qkv) => {
        const context = engine.scaled_dot_product_attention(qkv, 2);
        return engine.scaled_dot_product_attention_backward(grad, qkv, context, 2);
      },
      [2, 5, 3 * 2 * 3],
    );
    await expect_gradient(
      (qkv) => engine.eager_attention(qkv, 3).context,
      (grad, qkv) => engine.eager_attention_backward(grad, qkv, engine.eager_attention(qkv, 3).probs, 3),
      [1, 7, 3 * 3 * 2],
    );
    const dropout = { probability: 0.3, seed: 5 };
    await expect_gradient(
      (qkv) => engine.eager_attention_dropout(qkv, 3, dropout).context,
      (grad, qkv) => {
        const { probs } = engine.eager_attention_dropout(qkv, 3, dropout);
        return engine.eager_attention_backward(grad, qkv, probs, 3, dropout);
      },
      [1, 7, 3 * 3 * 2],
    );
  });

  test("embeddings", async () => {
    const patch = { height: 2, width: 3 };
    const pixels = tensor([2, 2, 5, 7], 3);
    const projection = engine.linear_weights(5, 12, "float32", true);
    const bias = tensor([5], 6);
    await expect_gradient(
      (weight) => {
        engine.set_linear(projection, weight, bias);
        return engine.patch_embed(pixels, projection, patch);
      },
      (grad) => engine.patch_embed_backward(grad, pixels, patch).weight,
      [5, 12],
    );
    const [patches, cls, positions] = [tensor([2, 4, 3], 1), tensor([1, 1, 3], 2), tensor([1, 5, 3], 3)];
    const mask = Uint8Array.of(0, 1, 1, 0, 0, 0, 0, 1);
    const mask_token = tensor([1, 1, 3], 4);
    await expect_gradient(
      (patches) => engine.embed_tokens(patches, cls, positions, { mask, mask_token }),
      (grad) => engine.embed_tokens_backward(grad, mask).patches,
      [2, 4, 3],
    );
    await expect_gradient(
      (cls) => engine.embed_tokens(patches, cls, positions),
      (grad) => engine.embed_tokens_backward(grad).cls_token,
      [1, 1, 3],
    );
    await expect_gradient(
      (positions) => engine.embed_tokens(patches, cls, positions),
      (grad) => engine.embed_tokens_backward(grad).positions,
      [1, 5, 3],
    );
    await expect_gradient(
      (mask_token) => engine.embed_tokens(patches, cls, positions, { mask, mask_token }),
      (grad) => engine.embed_tokens_backward(grad, mask).mask_token as TensorHandle,
      [1, 1, 3],
    );
    expect(engine.embed_tokens_backward(tensor([2, 5, 3], 1)).mask_token).toBeUndefined();
    const chosen = Uint32Array.of(3, 0, 1, 2);
    await expect_gradient(
      (x) => engine.take_tokens(x, chosen, 2),
      (grad) => engine.take_tokens_backward(grad, chosen, 2, 5),
      [2, 5, 3],
    );
    const [from, to] = [
      { height: 3, width: 2 },
      { height: 4, width: 5 },
    ];
    await expect_gradient(
      (positions) => engine.interpolate_positions(positions, from, to),
      (grad) => engine.interpolate_positions_backward(grad, from, to),
      [1, 7, 2],
    );
    for (const kind of ["cls", "mean"] as const) {
      await expect_gradient(
        (x) => engine.pool(x, kind),
        (grad) => engine.pool_backward(grad, kind, 4),
        [2, 4, 3],
      );
    }
  });

  test("losses", async () => {
    const labels = Int32Array.of(1, -100, 3);
    for (const smoothing of [0, 0.1]) {
      await expect_gradient(
        (logits) => engine.cross_entropy_smoothed(logits, labels, smoothing),
        (_, logits) => scaled(engine.cross_entropy_backward(logits, labels, smoothing)),
        [3, 4],
      );
    }
    const target = engine.tensor(values(6, 3).map(Math.abs), [2, 3]);
    await expect_gradient(
      (x) => engine.mse_loss(x, target),
      (_, x) => scaled(engine.mse_loss_backward(x, target)),
      [2, 3],
    );
    await expect_gradient(
      (x) => engine.bce_with_logits(x, target),
      (_, x) => scaled(engine.bce_with_logits_backward(x, target)),
      [2, 3],
    );
  });

  test("dropout is its own gradient", async () => {
    await expect_gradient(
      (x) => engine.dropout(x, 0.4, 77),
      (grad) => engine.dropout(grad, 0.4, 77),
      [5, 7],
    );
  });

  test("sums", async () => {
    const [x, y] = [values(11, 1), values(11, 2)];
    const [a, b] = [engine.tensor(x, [11]), engine.tensor(y, [11])];
    expect(await take(engine.add(a, b))).toEqual(x.map((v, i) => v + (y[i] as number)));
    const [squares] = await take(engine.sum_of_squares(a));
    expect(squares).toBeCloseTo(
      x.reduce((sum, v) => sum + v * v, 0),
      5,
    );
    engine.accumulate(a, b, 0.5);
    expect(await take(a)).toEqual(x.map((v, i) => v + 0.5 * (y[i] as number)));
  });

  test("wrong handles and options are errors", () => {
    const x = tensor([2, 3], 1);
    const other = tensor([3, 2], 1);
    const code_of = (action: () => unknown) => {
      try {
        action();
      } catch (error) {
        return (error as VitMsnError).code;
      }
      return undefined;
    };
    const options = { learning_rate: 0.1, momentum: 0.9, weight_decay: 0, gradient_scale: 1 };
    for (const action of [
      () => engine.add(x, other),
      () => engine.accumulate(x, x, 1),
      () => engine.dropout(x, 1.5, 0),
      () => engine.sgd_step(x, other, undefined, { ...options, nesterov: false, first: true }),
      () => engine.lars_step(x, x, other, { ...options, trust_coefficient: 1, epsilon: 0 }),
    ]) {
      expect(code_of(action)).toBe("INVALID_ARGUMENT");
    }
    engine.free(other);
    expect(code_of(() => engine.add(x, other))).toBe("DISPOSED");
  });
});
