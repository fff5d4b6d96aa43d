import { cos_sim, dot, normalize, Tensor } from "vit-msn";
import { ImageIndex } from "vit-msn/similar";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { temporary_directory } from "../support/directories.ts";
import { error_of } from "../support/rejections.ts";
import { abort_at_look } from "../support/signals.ts";

const SIZE = 24;

/** Noise from -1 to 1, another vector for each number. */
function vector(i: number, size = SIZE): Float32Array {
  return Float32Array.from({ length: size }, (_, k) => {
    const mixed = Math.imul((i + 1) * 65_537 + k, 0x9e3779b1);
    return Math.imul(mixed ^ (mixed >>> 15), 0x85ebca6b) / 2 ** 31;
  });
}
const name = (i: number) => `image ${i}.png`;

/** The definition: sort all images by their cosine with the query. */
function expected_nearest(query: ArrayLike<number>, vectors: readonly Float32Array[], k: number) {
  const scored = vectors.map((other, i) => ({ name: name(i), score: cos_sim(query, other) }));
  return scored.sort((a, b) => b.score - a.score).slice(0, k);
}

async function expect_error(action: () => Promise<unknown>, code: string, message: RegExp): Promise<void> {
  const error = await error_of(action());
  expect(error.message).toMatch(message);
  expect(error.code).toBe(code);
}

function expect_same(
  found: readonly { name: string; score: number }[],
  expected: readonly { name: string; score: number }[],
  tolerance: number,
): void {
  expect(found).toHaveLength(expected.length);
  for (const [i, { name, score }] of found.entries()) {
    expect(Math.abs(score - (expected[i]?.score as number))).toBeLessThan(tolerance);
    if (tolerance < 1e-4) expect(name).toBe(expected[i]?.name);
  }
}

describe("vectors", () => {
  test("dot, cosine and normalisation by their definitions", () => {
    expect(dot([1, 2, 3], Float32Array.of(4, 5, 6))).toBe(32);
    expect(cos_sim([1, 0], [1, 1])).toBeCloseTo(Math.SQRT1_2, 12);
    expect(cos_sim([1, 2], [-2, -4])).toBeCloseTo(-1, 12);
    expect([...normalize([3, 4])]).toEqual([Math.fround(0.6), Math.fround(0.8)]);
  });

  test("of length 0 are similar to none and stay as they are", () => {
    expect(cos_sim([0, 0], [1, 1])).toBe(0);
    expect([...normalize([0, 0])]).toEqual([0, 0]);
  });

  test("of different lengths can't be compared", async () => {
    for (const compare of [dot, cos_sim])
      await expect_error(async () => compare([1], [1, 2]), "INVALID_ARGUMENT", /1 and 2 numbers/);
  });
});

describe.each([
  ["float32", 1e-5],
  ["int8", 0.02],
] as const)("an index of %s", (dtype, tolerance) => {
  let index: ImageIndex;
  beforeEach(async () => {
    index = await ImageIndex.create({ dtype });
  });
  afterEach(() => index.dispose());

  test("finds what a comparison with every image finds", async () => {
    const vectors = Array.from({ length: 100 }, (_, i) => vector(i));
    for (const [i, one] of vectors.entries()) index.add(name(i), one);
    expect([index.length, index.size, index.dtype]).toEqual([100, SIZE, dtype]);
    for (const i of [0, 57, 99]) {
      const found = await index.nearest(vectors[i] as Float32Array, { k: 5 });
      expect(found[0]?.name).toBe(name(i));
      expect_same(found, expected_nearest(vectors[i] as Float32Array, vectors, 5), tolerance);
    }
    const query = vector(1000);
    expect_same(await index.nearest(query), expected_nearest(query, vectors, 10), tolerance);
  });

  test("takes several images and several queries at once", async () => {
    const vectors = Array.from({ length: 7 }, (_, i) => vector(i));
    const values = Float32Array.from(vectors.flatMap((one) => [...one]));
    index.add(
      vectors.map((_, i) => name(i)),
      new Tensor("float32", values, [7, SIZE]),
    );
    const lists = await index.nearest([vector(3), [...vector(5)]], { k: 2 });
    for (const [i, query] of [vector(3), vector(5)].entries())
      expect_same(lists[i] ?? [], expected_nearest(query, vectors, 2), tolerance);
    const row = new Tensor("float32", vector(4), [1, SIZE]);
    expect((await index.nearest(row, { k: 1 }))[0]?.name).toBe(name(4));
    expect(await index.nearest(row, { k: 100 })).toHaveLength(7);
    expect(await index.nearest([])).toEqual([]);
  });

  test("has more images than one block holds, added between searches", async () => {
    const count = 9000;
    const small = 3;
    for (let i = 0; i < count; i++) {
      index.add(name(i), vector(i, small));
      if (i % 3001 === 0) expect(await index.nearest(vector(i, small), { k: 1 })).toHaveLength(1);
    }
    const vectors = Array.from({ length: count }, (_, i) => vector(i, small));
    for (const i of [0, 4095, 4096, 8191, 8192, count - 1]) {
      const found = await index.nearest(vectors[i] as Float32Array, { k: 4 });
      const expected = expected_nearest(vectors[i] as Float32Array, vectors, 4);
      for (const [rank, { score }] of found.entries())
        expect(Math.abs(score - (expected[rank]?.score as number))).toBeLessThan(tolerance);
    }
  });

  test("is saved and loaded", async () => {
    const vectors = Array.from({ length: 50 }, (_, i) => vector(i));
    for (const [i, one] of vectors.entries()) index.add(i === 3 ? "café 🦁" : name(i), one);
    const directory = await temporary_directory();
    await index.save(directory.target);
    const files = await directory.read_files();
    expect(Object.keys(files).sort()).toEqual(["image_index.json", "image_index.safetensors"]);
    const loaded = await ImageIndex.load(files);
    expect([loaded.length, loaded.size, loaded.dtype, loaded.names]).toEqual([50, SIZE, dtype, index.names]);
    expect(await loaded.nearest(vector(20))).toEqual(await index.nearest(vector(20)));
    loaded.add("one more", vector(77));
    expect((await loaded.nearest(vector(77)))[0]?.name).toBe("one more");
    await Promise.all([loaded.dispose(), directory.remove()]);
  });

  test("finds near duplicates, each pair once", async () => {
    const near = (i: number) => vector(i).map((value, k) => value + 0.02 * Math.sin(k));
    for (let i = 0; i < 300; i++) index.add(name(i), vector(i, SIZE));
    index.add("near 5", near(5));
    index.add("near 280", near(280));
    const progress: number[] = [];
    const pairs = await index.duplicates({
      threshold: 0.99,
      progress_callback: ({ done, total }) => progress.push(done / total),
    });
    const found = pairs.map(({ names }) => names.join(" = ")).sort();
    expect(found.filter((pair) => pair.includes("near"))).toEqual([
      `${name(280)} = near 280`,
      `${name(5)} = near 5`,
    ]);
    expect(pairs.every(({ score }, i) => score <= (pairs[i - 1]?.score ?? 1))).toBe(true);
    expect(progress.at(-1)).toBe(1);
    const all = await index.duplicates({ threshold: -1 });
    expect(all).toHaveLength((302 * 301) / 2);
  });
});

describe("refusals", () => {
  let index: ImageIndex;
  beforeEach(async () => {
    index = await ImageIndex.create();
    index.add("a", vector(1));
  });
  afterEach(() => index.dispose());

  test.each<[string, () => unknown, RegExp]>([
    ["another length", () => index.add("b", [1, 2]), /vectors of 24 numbers, got one of 2/],
    ["NaN", () => index.add("b", vector(2).fill(Number.NaN, 3, 4)), /holds NaN at 3/],
    ["no name", () => index.add(7 as never, vector(2)), /A name must be a string/],
    ["a name with NUL", () => index.add("a\0b", vector(2)), /without NUL/],
    ["fewer vectors than names", () => index.add(["b", "c"], [vector(2)]), /2 names and 1 vectors/],
    ["no vector", () => index.add("b", undefined as never), /must be an array of numbers or a Tensor/],
    [
      "another type",
      () => index.add("b", new Tensor("int32", new Int32Array(SIZE), [SIZE])),
      /float32 Tensor \[size\]/,
    ],
    ["a query of another length", () => index.nearest([1]), /nearest\(\) takes vectors of 24 numbers/],
    [
      "a Tensor of several queries",
      () => index.nearest(new Tensor("float32", new Float32Array(2 * SIZE), [2, SIZE])),
      /a list of vectors/,
    ],
    ["no neighbours", () => index.nearest(vector(1), { k: 0 }), /k must be a positive integer/],
    ["an unknown option", () => index.nearest(vector(1), { topk: 3 } as never), /no option "topk"/],
    [
      "a threshold above 1",
      () => index.duplicates({ threshold: 2 }),
      /threshold must be a number from -1 to 1/,
    ],
    ["an unknown dtype", () => ImageIndex.create({ dtype: "float16" as never }), /one of "float32", "int8"/],
  ])("%s", async (_, action, message) => {
    await expect_error(async () => action(), "INVALID_ARGUMENT", message);
    expect(index.names).toEqual(["a"]);
  });

  test("nothing is added where one of several is wrong", async () => {
    await expect_error(async () => index.add(["b", "c"], [vector(2), [1]]), "INVALID_ARGUMENT", /one of 1/);
    expect(index.length).toBe(1);
  });

  test("an aborted search", async () => {
    for (const action of [
      (signal: AbortSignal) => index.nearest(vector(1), { signal }),
      (signal: AbortSignal) => index.duplicates({ signal }),
    ])
      await expect_error(() => action(abort_at_look(1).signal), "ABORTED", /aborted/);
    expect(await index.nearest(vector(1))).toHaveLength(1);
  });

  test("an index that was disposed", async () => {
    await index.dispose();
    await index.dispose();
    for (const action of [
      async () => index.add("b", vector(2)),
      () => index.nearest(vector(1)),
      () => index.duplicates(),
    ])
      await expect_error(action, "DISPOSED", /disposed/);
  });
});

test("an empty index has no similar images, and can be saved", async () => {
  const index = await ImageIndex.create();
  expect(await index.nearest([1, 2, 3])).toEqual([]);
  expect(await index.duplicates()).toEqual([]);
  const directory = await temporary_directory();
  await index.save(directory.target);
  const loaded = await ImageIndex.load(await directory.read_files());
  expect([loaded.length, loaded.size]).toEqual([0, 0]);
  loaded.add("first", [1, 2]);
  expect((await loaded.nearest([2, 4]))[0]).toEqual({
    name: "first",
    score: expect.closeTo(1, 6),
  });
  await Promise.all([index.dispose(), loaded.dispose(), directory.remove()]);
});

test("images may be added while a search is under way", async () => {
  const index = await ImageIndex.create({ worker: true });
  for (let i = 0; i < 20; i++) index.add(name(i), vector(i));
  const searches = [index.nearest(vector(3), { k: 1 }), index.nearest(vector(25), { k: 1 })];
  for (let i = 20; i < 30; i++) index.add(name(i), vector(i));
  const [first, second] = await Promise.all(searches);
  expect(first?.[0]?.name).toBe(name(3));
  expect(second).toHaveLength(1);
  expect((await index.nearest(vector(29)))[0]?.name).toBe(name(29));
  await index.dispose();
});

describe("a saved index that lies is refused", () => {
  let files: Record<string, Uint8Array>;
  beforeEach(async () => {
    const index = await ImageIndex.create({ dtype: "int8" });
    for (let i = 0; i < 3; i++) index.add(name(i), vector(i));
    const directory = await temporary_directory();
    await index.save(directory.target);
    files = await directory.read_files();
    await Promise.all([index.dispose(), directory.remove()]);
  });

  const settings = (change: object) => {
    const text = new TextDecoder().decode(files["image_index.json"]);
    return new TextEncoder().encode(JSON.stringify({ ...JSON.parse(text), ...change }));
  };

  test.each<[string, object, RegExp]>([
    ["another format", { format: "zip" }, /"format" must be/],
    ["a newer version", { version: 2 }, /"version" must be 1/],
    ["another dtype", { dtype: "float32" }, /"vectors" must be float32 \[3, 24\], but it is int8/],
    ["an unknown dtype", { dtype: "int4" }, /"dtype" must be/],
    ["another size", { size: 23 }, /"vectors" must be int8 \[3, 23\]/],
    ["a size of 2^50", { size: 2 ** 50 }, /"size" must be/],
    ["more vectors than names", { length: 4 }, /3 names for 4 vectors/],
    ["a negative length", { length: -1 }, /"length" must be/],
  ])("%s", async (_, change, message) => {
    const changed = { ...files, "image_index.json": settings(change) };
    await expect_error(() => ImageIndex.load(changed), "INVALID_CHECKPOINT", message);
  });

  test("a missing file", async () => {
    for (const missing of Object.keys(files)) {
      const { [missing]: _, ...rest } = files;
      await expect_error(() => ImageIndex.load(rest), "NOT_FOUND", new RegExp(`lacks ${missing}`));
    }
  });

  test("every truncation", async () => {
    const whole = files["image_index.safetensors"] as Uint8Array;
    for (let length = 0; length < whole.length; length += 13) {
      const cut = { ...files, "image_index.safetensors": whole.subarray(0, length) };
      expect((await error_of(ImageIndex.load(cut))).code).toBe("INVALID_CHECKPOINT");
    }
  });

  test("scales that aren't finite", async () => {
    const bytes = (files["image_index.safetensors"] as Uint8Array).slice();
    const header = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    const { scales } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + header)));
    new DataView(bytes.buffer).setFloat32(8 + header + scales.data_offsets[0], Number.NaN, true);
    await expect_error(
      () => ImageIndex.load({ ...files, "image_index.safetensors": bytes }),
      "INVALID_CHECKPOINT",
      /NaN or infinity/,
    );
  });
});
