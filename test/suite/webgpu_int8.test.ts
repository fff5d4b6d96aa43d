import { ViTMSNModel } from "vit-msn";
import { describe, expect, test } from "vitest";
import type { Engine } from "../../ts/engine/engine.ts";
import { find_gpu, open_device } from "../support/gpu_devices.ts";
import { no_webgpu } from "../support/webgpu.ts";

const SIZE = 64;
const TINY = {
  hidden_size: 16,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  intermediate_size: 16,
  image_size: 8,
  patch_size: 4,
};

/** x [SIZE, SIZE] times the identity, whose weights int8 represents exactly. */
async function times_identity(engine: Engine, x: Float32Array): Promise<Float32Array> {
  const identity = Float32Array.from({ length: SIZE * SIZE }, (_, i) => (i % (SIZE + 1) === 0 ? 127 : 0));
  const weights = engine.linear_weights(SIZE, SIZE, "int8", false);
  engine.set_rows(weights, 0, new Uint8Array(identity.buffer), "float32");
  return engine.read(engine.linear(engine.tensor(x, [SIZE, SIZE]), weights, "identity"));
}

describe.skipIf(no_webgpu !== undefined)("int8 on a GPU", () => {
  test("activations are rounded to the nearest step, so that errors cancel in sums", async () => {
    const device = await open_device("as a GPU");
    const { engine } = await ViTMSNModel.from_config(TINY, { device, dtype: "int8" });
    // The first of each 32 values makes their step 1. The others lie close below or above a step.
    const x = Float32Array.from({ length: SIZE * SIZE }, (_, i) =>
      i % 32 === 0 ? 127 : ((i * 37) % 200) - 100 + (i % 2 === 0 ? 0.9 : 0.1),
    );
    const y = await times_identity(engine, x);
    // Without dot products of packed bytes, activations stay as they are.
    const { wgslLanguageFeatures } = await find_gpu();
    const is_packed = wgslLanguageFeatures.has("packed_4x8_integer_dot_product");
    const expected = x.map((value) => 127 * (is_packed ? Math.round(value) : value));
    const wrong = [...y.keys()].filter((i) => Math.abs((y[i] as number) - (expected[i] as number)) > 1);
    expect(wrong).toEqual([]);
    await engine.dispose();
    device.destroy();
  });
});
