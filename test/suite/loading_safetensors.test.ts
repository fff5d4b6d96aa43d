import { describe, expect, test } from "vitest";
import { memory_file } from "../../ts/loading/bytes.ts";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { read_safetensors_header } from "../../ts/loading/formats/safetensors.ts";
import { type TensorToWrite, write_safetensors } from "../../ts/loading/formats/write_safetensors.ts";
import { open_source } from "../../ts/loading/source.ts";
import { expect_error } from "../support/errors.ts";
import { read_file } from "../support/files.ts";
import { sparse_file } from "../support/sparse_file.ts";
import { ascii, concat, floats, uint64 } from "../support/torch_archive.ts";

const A = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
const B = { dtype: "F32", shape: [1, 1], data_offsets: [8, 12] };
const DATA = floats(1, 2, 3);
const sound = JSON.stringify({ a: A, b: B });

/** A file of this header, as JSON text or an object. */
function file_of(header: unknown, data: Uint8Array = DATA, length?: number | bigint) {
  const text = ascii(typeof header === "string" ? header : JSON.stringify(header));
  return concat(uint64(length ?? text.byteLength), text, data);
}

const read = (bytes: Uint8Array) => read_safetensors_header(memory_file("model.safetensors", bytes));
const open = async (files: Record<string, Uint8Array>) => open_checkpoint(await open_source(files));

async function collect(stream: AsyncIterable<Uint8Array>): Promise<Uint8Array<ArrayBuffer>> {
  const pieces: Uint8Array[] = [];
  for await (const piece of stream) pieces.push(piece);
  return concat(...pieces);
}

test("a fixture's tensors are listed and read", async () => {
  const checkpoint = await open({
    "model.safetensors": await read_file("test/fixtures/tiny/model.safetensors"),
  });
  expect(checkpoint.tensors.size).toBe(56);
  const bias = checkpoint.tensors.get("classifier.bias");
  expect(bias?.dims).toEqual([7]);
  expect(bias?.dtype).toBe("float32");
  const bytes = (await bias?.read(4, 8)) as Uint8Array;
  expect(bytes.byteLength).toBe(8);
  await expect_error(async () => bias?.read(24, 8), "INVALID_CHECKPOINT", /classifier.bias/);
});

test("dtypes that no model uses are listed apart", async () => {
  const header = {
    ids: { dtype: "I64", shape: [1], data_offsets: [0, 8] },
    weight: { dtype: "BF16", shape: [1], data_offsets: [8, 10] },
    half: { dtype: "F16", shape: [], data_offsets: [10, 12] },
  };
  const checkpoint = await open({ "model.safetensors": file_of(header) });
  expect([...checkpoint.unreadable]).toEqual([["ids", "I64"]]);
  expect(checkpoint.tensors.get("weight")?.dtype).toBe("bfloat16");
  expect(checkpoint.tensors.get("half")?.dims).toEqual([]);
});

test("keys of JavaScript's own are keys like any other", async () => {
  const checkpoint = await open({
    "model.safetensors": file_of(`{"__proto__":${JSON.stringify(A)},"constructor":${JSON.stringify(B)}}`),
  });
  expect([...checkpoint.tensors.keys()]).toEqual(["__proto__", "constructor"]);
});

test("empty tensors take no bytes", async () => {
  const entries = await read(
    file_of({ a: A, b: B, none: { dtype: "F32", shape: [0, 9], data_offsets: [8, 8] } }),
  );
  expect(entries.map(({ key }) => key)).toEqual(["a", "b", "none"]);
});

test("metadata may be null, and an entry may have fields of its own", async () => {
  const header = sound.replace('"dtype"', '"note":1.5e3,"dtype"').replace("{", '{"__metadata__":null,');
  expect((await read(file_of(header))).map(({ key }) => key)).toEqual(["a", "b"]);
  expect(await read(file_of(`${sound} \n`))).toHaveLength(2);
});

test("64 axes are read", async () => {
  const shape = [...Array(63).fill(1), 2];
  expect((await read(file_of({ a: { ...A, shape }, b: B })))[0]?.dims).toEqual(shape);
});

describe("the length of a header is limited before it is read", () => {
  const of_length = (length: number) =>
    read_safetensors_header(sparse_file("model.safetensors", 300_000_000, [0, uint64(length)]));

  test("one byte too long", async () => {
    await expect_error(of_length(100_000_001), "INVALID_CHECKPOINT", /100000001 bytes, more than 100000000/);
  });

  test("the longest", async () => {
    await expect_error(of_length(100_000_000), "INVALID_CHECKPOINT", /^The header of .* isn't valid JSON/);
  });
});

describe("a header that lies is refused", () => {
  const cases: [string, Uint8Array, RegExp][] = [
    ["nothing at all", new Uint8Array(0), /0 bytes, too few/],
    [
      "a header length of 2^64-1",
      file_of({ a: A }, DATA, 2n ** 64n - 1n),
      /claims a header of 18446744073709551615 bytes/,
    ],
    ["a header length just past 2^53", file_of({ a: A }, DATA, 2n ** 53n + 1n), /claims a header/],
    ["a header longer than the file", file_of({ a: A }, DATA, 5000), /cut off/],
    ["a header that isn't UTF-8", concat(uint64(4), new Uint8Array([0x7b, 0xff, 0xfe, 0x7d])), /UTF-8/],
    ["a header that isn't JSON", file_of('{"a":'), /isn't valid JSON/],
    ["a header that isn't an object", file_of("[]"), /isn't a JSON object/],
    ["a header of deep nesting", file_of("[".repeat(100_000)), /nested deeper/],
    [
      "a header of a million values",
      file_of(`{"a":[${"0,".repeat(1_000_000)}0]}`),
      /more than 1000000 values/,
    ],
    ["an entry that isn't an object", file_of({ a: 3 }), /unknown dtype/],
    ["an unknown dtype", file_of({ a: { ...A, dtype: "F33" } }), /"a" has the unknown dtype "F33"/],
    ["a dtype that isn't a string", file_of({ a: { ...A, dtype: 7 } }), /unknown dtype 7/],
    ["a negative size", file_of({ a: { ...A, shape: [-2] } }), /shape \[-2\]/],
    ["a fractional size", file_of({ a: { ...A, shape: [2.5] } }), /shape \[2.5\]/],
    ["a size past 2^53", file_of({ a: { ...A, shape: [2 ** 60] } }), /shape/],
    ["a product that overflows", file_of({ a: { ...A, shape: [2 ** 32, 2 ** 32] } }), /doesn't fill/],
    [
      "a product that overflows to the right size",
      file_of({ a: { ...A, shape: [2 ** 31, 2 ** 31, 2 ** 2, 2] } }),
      /doesn't fill/,
    ],
    ["offsets the wrong way round", file_of({ a: { ...A, data_offsets: [8, 0] } }), /doesn't fill/],
    [
      "a range longer than its tensor",
      file_of({ a: { ...A, shape: [1] }, b: B }),
      /"a" of dtype F32 and shape \[1\] doesn't fill bytes 0 to 8/,
    ],
    ["65 axes", file_of({ a: { ...A, shape: [...Array(64).fill(1), 2] }, b: B }), /"a" has the shape/],
    ["three offsets", file_of({ a: { ...A, data_offsets: [0, 8, 8] } }), /data_offsets/],
    ["negative offsets", file_of({ a: { ...A, data_offsets: [-8, 0] } }), /data_offsets/],
    ["offsets past the end", file_of({ a: A, b: { ...B, data_offsets: [8, 12] } }, floats(1)), /cut off/],
    ["bytes that belong to nothing", file_of({ a: A }), /belong to no tensor/],
    ["overlapping tensors", file_of({ a: A, b: { ...B, data_offsets: [4, 8] } }), /"b" overlaps/],
    [
      "a hole",
      file_of({ a: A, b: { ...B, data_offsets: [12, 16] } }, floats(1, 2, 3, 4)),
      /"b" leaves a gap/,
    ],
    [
      "a key given twice",
      file_of(`{"a":${JSON.stringify(A)},"\\u0061":${JSON.stringify(A)}}`),
      /given twice/,
    ],
    [
      "a dtype given twice",
      file_of(`{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}`),
      /given twice/,
    ],
    ["metadata that isn't strings", file_of({ __metadata__: { format: 1 }, a: A, b: B }), /__metadata__/],
    ["metadata that is a list", file_of({ __metadata__: [], a: A, b: B }), /__metadata__/],
    ["a byte order mark", file_of(`\ufeff${JSON.stringify({ a: A, b: B })}`), /doesn't begin with \{/],
    ["spaces before the header", file_of(`  ${JSON.stringify({ a: A, b: B })}`), /doesn't begin with \{/],
    ["a size as 2.0", file_of(sound.replace("[2]", "[2.0]")), /shape \["2.0"\]/],
    ["a size as 2e0", file_of(sound.replace("[2]", "[2e0]")), /shape \["2e0"\]/],
    ["an offset as 8.0", file_of(sound.replace("[0,8]", "[0,8.0]")), /data_offsets \[0,"8.0"\]/],
    ["a size as -0", file_of(sound.replace("[2]", "[-0]")), /shape/],
    ["NaN, which only Python's JSON has", file_of(sound.replace("{", '{"x":NaN,')), /a value is expected/],
    ["text after the header", file_of(`${JSON.stringify({ a: A, b: B })}x`), /its end is expected/],
    ["a web page", ascii("<!DOCTYPE html><html><body>Sign in</body></html>"), /is a web page/],
    [
      "a Git LFS pointer",
      ascii("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a"),
      /git lfs pull/,
    ],
  ];
  test.each(cases)("%s", async (_, bytes, message) => {
    await expect_error(read(bytes), "INVALID_CHECKPOINT", message);
  });

  test("every truncation of a sound file", async () => {
    const whole = file_of({ a: A, b: B });
    await read(whole);
    for (let length = 0; length < whole.byteLength; length++) {
      await expect_error(read(whole.subarray(0, length)), "INVALID_CHECKPOINT", /model\.safetensors/);
    }
  });
});

describe("sharded checkpoints", () => {
  const first = file_of({ a: A }, floats(1, 2));
  const second = file_of({ b: { ...B, data_offsets: [0, 4] } }, floats(3));
  const index = (weight_map: unknown) => ascii(JSON.stringify({ metadata: { total_size: 12 }, weight_map }));
  const shards = { "model-1.safetensors": first, "model-2.safetensors": second };

  test("open as one", async () => {
    const weight_map = { a: "model-1.safetensors", b: "model-2.safetensors" };
    const checkpoint = await open({ ...shards, "model.safetensors.index.json": index(weight_map) });
    expect([...checkpoint.tensors.keys()]).toEqual(["a", "b"]);
    expect(await checkpoint.tensors.get("b")?.read(0, 4)).toEqual(floats(3));
  });

  test.each<[string, unknown, "INVALID_CHECKPOINT" | "NOT_FOUND", RegExp]>([
    [
      "a key that its shard lacks",
      { a: "model-2.safetensors" },
      "INVALID_CHECKPOINT",
      /"a" is in model-2.safetensors, which lacks it/,
    ],
    [
      "a shard that isn't there",
      { a: "model-3.safetensors" },
      "NOT_FOUND",
      /lacks the shard model-3.safetensors/,
    ],
    [
      "a shard outside of the folder",
      { a: "../../etc/passwd" },
      "INVALID_CHECKPOINT",
      /isn't a plain relative path/,
    ],
    ["an absolute shard", { a: "/etc/passwd" }, "INVALID_CHECKPOINT", /isn't a plain relative path/],
    ["a shard with a backslash", { a: "..\\secret" }, "INVALID_CHECKPOINT", /isn't a plain relative path/],
    ["a shard with NUL", { a: "a\0b" }, "INVALID_CHECKPOINT", /isn't a plain relative path/],
    ["a weight_map that isn't a map", [], "INVALID_CHECKPOINT", /without a weight_map/],
    ["a weight_map of numbers", { a: 1 }, "INVALID_CHECKPOINT", /doesn't map keys to file names/],
    ["an empty weight_map", {}, "INVALID_CHECKPOINT", /lists 0 files/],
  ])("%s is refused", async (_, weight_map, code, message) => {
    await expect_error(open({ ...shards, "model.safetensors.index.json": index(weight_map) }), code, message);
  });
});

describe("writing", () => {
  const tensors: TensorToWrite[] = [
    { key: "half", dtype: "float16", dims: [1, 2], byte_length: 4, bytes: new Uint8Array([1, 2, 3, 4]) },
    { key: "b", dtype: "float32", dims: [2], byte_length: 8, bytes: floats(1, 2) },
    { key: "a", dtype: "float32", dims: [], byte_length: 4, bytes: pieces(floats(3)) },
  ];
  async function* pieces(bytes: Uint8Array) {
    for (const byte of bytes) yield new Uint8Array([byte]);
  }

  test("gives a file that reads back, ordered as the safetensors library does", async () => {
    const bytes = await collect(write_safetensors(tensors));
    const header_length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    expect(header_length % 8).toBe(0);
    const checkpoint = await open({ "model.safetensors": bytes });
    expect([...checkpoint.tensors.keys()]).toEqual(["a", "b", "half"]);
    expect(await checkpoint.tensors.get("a")?.read(0, 4)).toEqual(floats(3));
    expect(await checkpoint.tensors.get("half")?.read(0, 4)).toEqual(new Uint8Array([1, 2, 3, 4]));
    expect(new TextDecoder().decode(bytes.subarray(8, 50))).toContain('"format":"pt"');
  });

  test.each<[string, Partial<TensorToWrite>, RegExp]>([
    ["a size that isn't the shape's", { byte_length: 9 }, /can't have 9 bytes/],
    ["too few bytes", { bytes: floats(1) }, /didn't provide exactly its 8 bytes/],
    ["too many bytes", { bytes: floats(1, 2, 3) }, /didn't provide exactly its 8 bytes/],
    ["a reserved key", { key: "__metadata__" }, /reserved/],
  ])("refuses %s", async (_, change, message) => {
    const tensor = { ...(tensors[1] as TensorToWrite), ...change };
    await expect_error(collect(write_safetensors([tensor])), "INVALID_ARGUMENT", message);
  });

  test("refuses a key given twice", async () => {
    const twice = [tensors[1] as TensorToWrite, tensors[1] as TensorToWrite];
    await expect_error(collect(write_safetensors(twice)), "INVALID_ARGUMENT", /twice/);
  });
});
