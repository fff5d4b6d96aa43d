import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { attention_rollout, cls_attention } from "../../examples/studio/src/worker/attention_maps.ts";
import { as_colours, principal_components } from "../../examples/studio/src/worker/pca.ts";

// What the studio computes by itself, beside its definition.

/** Probabilities [1, heads, tokens, tokens] for each layer. */
const attentions = fc
  .record({
    layers: fc.integer({ min: 1, max: 4 }),
    heads: fc.integer({ min: 1, max: 3 }),
    tokens: fc.integer({ min: 2, max: 7 }),
    seed: fc.integer({ min: 1, max: 1e6 }),
  })
  .map(({ layers, heads, tokens, seed }) => ({
    heads,
    tokens,
    maps: Array.from({ length: layers }, (_, layer) => probabilities(heads * tokens, tokens, seed + layer)),
  }));

function probabilities(rows: number, size: number, seed: number): Float32Array {
  const values = Float32Array.from({ length: rows * size }, (_, i) => 1.1 + Math.sin(seed * 7.3 + i * 1.7));
  for (let row = 0; row < rows; row++) {
    const slice = values.subarray(row * size, (row + 1) * size);
    const sum = slice.reduce((a, b) => a + b, 0);
    slice.forEach((value, i) => {
      slice[i] = value / sum;
    });
  }
  return values;
}

/** The product of the layers' (A + I) / 2 as matrices, by its definition. */
function rollout_by_definition(maps: readonly Float32Array[], heads: number, tokens: number): number[] {
  const identity = (i: number, j: number): number => (i === j ? 1 : 0);
  const square = Array.from({ length: tokens }, (_, i) => i);
  let product = square.map((i) => square.map((j) => identity(i, j)));
  for (const map of maps) {
    const layer = square.map((i) =>
      square.map((j) => {
        let mean = 0;
        for (let h = 0; h < heads; h++) mean += (map[(h * tokens + i) * tokens + j] as number) / heads;
        return (mean + identity(i, j)) / 2;
      }),
    );
    product = square.map((i) =>
      square.map((j) =>
        square.reduce((sum, k) => sum + (layer[i]?.[k] as number) * (product[k]?.[j] as number), 0),
      ),
    );
  }
  return (product[0] as number[]).slice(1);
}

describe("attention", () => {
  test("rollout's rows are those of the matrices' product, for every last layer", () => {
    fc.assert(
      fc.property(attentions, ({ maps, heads, tokens }) => {
        const found = attention_rollout(maps, heads, tokens);
        for (let last = 0; last < maps.length; last++) {
          const row = found.subarray(last * (tokens - 1), (last + 1) * (tokens - 1));
          const expected = rollout_by_definition(maps.slice(0, last + 1), heads, tokens);
          for (const [i, value] of expected.entries()) expect(row[i]).toBeCloseTo(value, 5);
        }
      }),
    );
  });

  test("CLS' maps are the first rows, without CLS", () => {
    fc.assert(
      fc.property(attentions, ({ maps, heads, tokens }) => {
        const found = cls_attention(maps, heads, tokens);
        expect(found).toHaveLength(maps.length * heads * (tokens - 1));
        const [layer, head] = [maps.length - 1, heads - 1];
        const row = found.subarray((layer * heads + head) * (tokens - 1));
        const start = head * tokens * tokens + 1;
        expect(row).toEqual((maps[layer] as Float32Array).subarray(start, start + tokens - 1));
      }),
    );
  });
});

describe("principal components", () => {
  test("find the directions that data was made of, with their shares of the variance", () => {
    const [rows, size] = [60, 17];
    const [weights, rates] = [
      [9, 3, 1],
      [1.1, 2.3, 0.7],
    ];
    // Each direction has a third of the columns for itself.
    const data = Float32Array.from({ length: rows * size }, (_, at) => {
      const [row, c] = [Math.floor(at / size) + 1, (at % size) % 3];
      return (weights[c] as number) * Math.sin(row * (rates[c] as number) + c);
    });
    const { scores, explained } = principal_components(data, size);
    expect(explained[0]).toBeGreaterThan(explained[1]);
    expect(explained[1]).toBeGreaterThan(explained[2]);
    expect(explained.reduce((a, b) => a + b)).toBeCloseTo(1, 4);
    // Scores are uncorrelated, and their squares are what they explain.
    const column = (c: number) => Array.from({ length: rows }, (_, i) => scores[3 * i + c] as number);
    const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);
    expect(Math.abs(dot(column(0), column(1))) / dot(column(0), column(0))).toBeLessThan(1e-4);
    expect(dot(column(1), column(1)) / dot(column(0), column(0))).toBeCloseTo(explained[1] / explained[0], 4);
  });

  test.each([
    ["one row", 1, 5],
    ["two rows", 2, 4],
    ["rows that are all alike", 6, 3],
  ])("give finite colours for %s", (_, rows, size) => {
    const { scores, explained } = principal_components(new Float32Array(rows * size).fill(0.3), size);
    expect([...scores, ...explained].every(Number.isFinite)).toBe(true);
    const colours = as_colours(scores);
    expect(colours.every((value) => value >= 0 && value <= 1)).toBe(true);
  });
});
