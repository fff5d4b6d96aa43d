import { Tensor, ViTMSNModel, VitMsnError } from "vit-msn";
import { describe, expect, test } from "vitest";
import { max_difference } from "../support/tensors.ts";

const CONFIG = {
  hidden_size: 16,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  intermediate_size: 24,
  image_size: 12,
  patch_size: 4,
};
const PATCHES = 9;
const pixel_values = new Tensor(
  "float32",
  Float32Array.from({ length: 864 }, (_, i) => Math.sin(i)),
  [2, 3, 12, 12],
);

async function with_model<T>(body: (model: ViTMSNModel) => Promise<T>): Promise<T> {
  const model = await ViTMSNModel.from_config(CONFIG);
  try {
    return await body(model);
  } finally {
    await model.dispose();
  }
}

describe("visible_patches", () => {
  test("all patches in order change nothing", () =>
    with_model(async (model) => {
      const visible_patches = Array.from({ length: PATCHES }, (_, i) => i);
      const all = await model.forward({ pixel_values });
      expect(await model.forward({ pixel_values, visible_patches })).toEqual(all);
    }));

  test("the encoder sees the embeddings of CLS and the named patches, in the given order", () =>
    with_model(async (model) => {
      const visible_patches = [
        [8, 0, 3],
        [1, 2, 7],
      ];
      const whole = (await model.forward({ pixel_values, output_hidden_states: true })).hidden_states?.[0];
      const { hidden_states, last_hidden_state } = await model.forward({
        pixel_values,
        visible_patches,
        output_hidden_states: true,
        output_attentions: true,
      });
      expect(last_hidden_state.dims).toEqual([2, 4, 16]);
      const seen = hidden_states?.[0]?.data as Float32Array;
      visible_patches.forEach((patches, image) => {
        [-1, ...patches].forEach((patch, token) => {
          const at = (image * 4 + token) * 16;
          const from = (image * (PATCHES + 1) + patch + 1) * 16;
          expect(seen.subarray(at, at + 16)).toEqual(whole?.data.subarray(from, from + 16));
        });
      });
    }));

  test("order doesn't matter to CLS, and what is dropped doesn't matter at all", () =>
    with_model(async (model) => {
      const cls = async (visible_patches: number[], pixels: Tensor = pixel_values) =>
        (await model.get_image_features({ pixel_values: pixels, visible_patches })).data;
      const some = await cls([0, 1, 5]);
      expect(max_difference(await cls([5, 0, 1]), some)).toBeLessThan(1e-6);
      // Row 2 of the patches (indices 6 to 8) covers pixel rows 8 to 11.
      const changed = Float32Array.from(pixel_values.data, (x, i) => (Math.floor(i / 12) % 12 >= 8 ? -x : x));
      expect(await cls([0, 1, 5], new Tensor("float32", changed, pixel_values.dims))).toEqual(some);
      expect(max_difference(await cls([0, 1, 6]), some)).toBeGreaterThan(1e-4);
    }));

  test("takes tensors", () =>
    with_model(async (model) => {
      const list = await model.forward({ pixel_values, visible_patches: [4, 2] });
      for (const visible_patches of [
        new Tensor("int64", [4, 2], [2]),
        new Tensor("int32", [4, 2, 4, 2], [2, 2]),
      ]) {
        expect(await model.forward({ pixel_values, visible_patches })).toEqual(list);
      }
    }));

  test.each([
    [[], "rows of 0"],
    [[9], "0 to 8"],
    [[-1], "0 to 8"],
    [[0.5], "0 to 8"],
    [[Number.NaN], "0 to 8"],
    [[1, 1], "twice"],
    [[[0], [1], [2]], "2 images"],
    [[[0, 1], [2]], "rows of 2, 1"],
    ["0", "a Tensor or an array"],
    [new Tensor("int32", [0, 1], [1, 1, 2]), "2 images"],
  ])("refuses %o", (visible_patches, sentence) =>
    with_model(async (model) => {
      const error = await model.forward({ pixel_values, visible_patches } as never).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(VitMsnError);
      expect((error as VitMsnError).code).toBe("INVALID_ARGUMENT");
      expect((error as VitMsnError).message).toContain(sentence);
    }),
  );
});
