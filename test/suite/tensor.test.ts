import { Tensor, VitMsnError } from "vit-msn";
import { describe, expect, test } from "vitest";
import { DeviceTensor } from "../../ts/device_tensor.ts";
import type { Engine, TensorHandle } from "../../ts/engine/engine.ts";
import { check_elements } from "../../ts/tensor.ts";

describe("Tensor", () => {
  test("has type, dims, data and getData", async () => {
    const data = Float32Array.of(1, 2, 3, 4, 5, 6);
    const tensor = new Tensor("float32", data, [2, 3]);
    expect([tensor.type, tensor.dims, tensor.size]).toEqual(["float32", [2, 3], 6]);
    expect(await tensor.getData()).toBe(data);
    expect(tensor.tolist()).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    expect(tensor.reshape(3, 2).tolist()).toEqual([
      [1, 2],
      [3, 4],
      [5, 6],
    ]);
  });

  test("takes arrays of numbers", () => {
    expect(new Tensor("float32", [1, 2], [2]).data).toEqual(Float32Array.of(1, 2));
    expect(new Tensor("int64", [1, -100], [2]).data).toEqual(BigInt64Array.of(1n, -100n));
    expect(new Tensor("bool", [1, 0], [1, 2]).tolist()).toEqual([[1, 0]]);
  });

  test.each([
    ["float32", new Float32Array(5), [2, 3], "6 elements"],
    ["float32", new Float64Array(6), [2, 3], "Float32Array"],
    ["float32", null, [1], "Float32Array"],
    ["float16", new Uint16Array(1), [1], "float16"],
    ["float32", new Float32Array(1), [-1], "non-negative"],
    ["float32", new Float32Array(1), [0.5, 2], "non-negative"],
    ["float32", new Float32Array(1), undefined, "non-negative"],
  ])("rejects %s %o %o", (type, data, dims, word) => {
    const make = () => new Tensor(type as never, data as never, dims as never);
    expect(make).toThrow(VitMsnError);
    expect(make).toThrow(word);
  });

  test.each([Object.create(null), Symbol("x"), ["float32"], { toString: null }])(
    "a type that is no string is refused, case %#",
    (type) => {
      expect(() => new Tensor(type, [], [0])).toThrow(VitMsnError);
    },
  );

  test("on a device is checked without its elements", () => {
    const engine = { free: () => {} } as unknown as Engine;
    const tensor = new DeviceTensor(engine, {} as TensorHandle, [1, 3, 4, 4]);
    expect(() => tensor.data).toThrow("on the GPU");
    expect(() => check_elements(tensor, "pixel_values")).not.toThrow();
    tensor.dispose();
  });
});
