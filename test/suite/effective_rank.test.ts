import { describe, expect, test } from "vitest";
import { effective_rank } from "../../ts/training/msn/effective_rank.ts";

/** Points ±scale on each axis, turned by a reflection so that no axis is a coordinate, and moved. */
function cross(scales: readonly number[], width: number): Float32Array {
  const rows = scales.flatMap((scale, axis) =>
    [scale, -scale].map((value) => Array.from({ length: width }, (_, i) => (i === axis ? value : 0))),
  );
  const v = Array.from({ length: width }, (_, i) => Math.sin(i + 1));
  const squares = v.reduce((sum, x) => sum + x * x, 0);
  return Float32Array.from(
    rows.flatMap((row) => {
      const along = row.reduce((sum, x, i) => sum + x * (v[i] as number), 0);
      return row.map((x, i) => x - (2 * along * (v[i] as number)) / squares + i);
    }),
  );
}

/** exp of the entropy of numbers divided by their sum. */
function expected(values: readonly number[]): number {
  const sum = values.reduce((a, b) => a + b, 0);
  return Math.exp(values.reduce((total, x) => total - (x / sum) * Math.log(x / sum), 0));
}

describe("the effective rank is exp of the entropy of the normalised singular values", () => {
  test.each([
    [[3, 3], 2],
    [[5], 7],
    [[4, 2, 1], 3],
    [[4, 2, 1], 40],
    [[9, 7, 5, 3, 1, 0.5, 0.25], 9],
    [Array.from({ length: 60 }, (_, i) => 1 + i), 100],
  ])("of %j in %d dimensions", (scales, width) => {
    expect(effective_rank(cross(scales, width), width)).toBeCloseTo(expected(scales), 3);
  });

  test("the same for more rows than columns and for the rows repeated", () => {
    const once = cross([4, 2, 1], 3);
    const often = Float32Array.from({ length: 20 * once.length }, (_, i) => once[i % once.length] as number);
    expect(effective_rank(often, 3)).toBeCloseTo(expected([4, 2, 1]), 4);
  });

  test("one less than the number of features that are orthogonal to each other", () => {
    const identity = Float32Array.from({ length: 48 * 48 }, (_, i) => (i % 49 === 0 ? 1 : 0));
    expect(effective_rank(identity, 48)).toBeCloseTo(47, 6);
  });

  test("1 on a line, and 0 if all features are equal", () => {
    const line = Float32Array.from({ length: 30 }, (_, i) => Math.floor(i / 3) * ((i % 3) + 1));
    expect(effective_rank(line, 3)).toBeCloseTo(1, 6);
    expect(effective_rank(new Float32Array(30).fill(0.7), 3)).toBe(0);
    expect(effective_rank(Float32Array.of(1, 2, 3), 3)).toBe(0);
  });
});
