import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { VitMsnError } from "../../ts/errors.ts";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import { read_file } from "../support/files.ts";
import {
  ascii,
  concat,
  op,
  ordered_dict,
  SIX,
  state_dict_pickle,
  torch_file,
} from "../support/torch_archive.ts";

/** More with FUZZ_RUNS=100000; each case must end, on a slow and busy machine too. */
const RUNS = Number((typeof process === "undefined" ? undefined : process.env?.FUZZ_RUNS) ?? 300);
const LIMIT_MS = 25_000;
const TIMEOUT_MS = 30_000 + RUNS * 20;
const MAX_READ = 1 << 20;

/** A change of some bytes: positions are fractions of the length, so that shrinking keeps their meaning. */
const place = fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true });
const lies = [0n, 1n, 0xffn, 0x7fffffffn, 0xffffffffn, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
const mutation = fc.oneof(
  fc.record({ kind: fc.constant("flip" as const), at: place, bit: fc.nat(7) }),
  fc.record({ kind: fc.constant("set" as const), at: place, value: fc.nat(255) }),
  fc.record({ kind: fc.constant("cut" as const), at: place }),
  fc.record({ kind: fc.constant("delete" as const), at: place, length: fc.integer({ min: 1, max: 64 }) }),
  fc.record({
    kind: fc.constant("splice" as const),
    at: place,
    from: place,
    length: fc.integer({ min: 1, max: 64 }),
  }),
  fc.record({
    kind: fc.constant("lie" as const),
    at: place,
    width: fc.constantFrom(2, 4, 8),
    value: fc.constantFrom(...lies),
  }),
  fc.record({
    kind: fc.constant("insert" as const),
    at: place,
    bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
  }),
);
type Mutation = typeof mutation extends fc.Arbitrary<infer T> ? T : never;

function mutate(original: Uint8Array, mutations: readonly Mutation[]): Uint8Array {
  return mutations.reduce(mutate_once, original);
}

function mutate_once(bytes: Uint8Array, change: Mutation): Uint8Array {
  const at = Math.floor(change.at * bytes.byteLength);
  const copy = bytes.slice();
  switch (change.kind) {
    case "flip":
      if (copy.byteLength > 0) copy[at] = (copy[at] as number) ^ (1 << change.bit);
      return copy;
    case "set":
      if (copy.byteLength > 0) copy[at] = change.value;
      return copy;
    case "cut":
      return copy.subarray(0, at);
    case "delete":
      return concat(copy.subarray(0, at), copy.subarray(at + change.length));
    case "splice": {
      const from = Math.floor(change.from * bytes.byteLength);
      return concat(copy.subarray(0, at), copy.subarray(from, from + change.length), copy.subarray(at));
    }
    case "lie":
      for (let i = 0; i < change.width && at + i < copy.byteLength; i++)
        copy[at + i] = Number((change.value >> BigInt(8 * i)) & 0xffn);
      return copy;
    case "insert":
      return concat(copy.subarray(0, at), change.bytes, copy.subarray(at));
  }
}

/** Opens it and reads everything it claims to hold; only a VitMsnError may come out, and soon. */
async function survives(files: Record<string, Uint8Array>): Promise<void> {
  const start = performance.now();
  try {
    const source = await open_source(files);
    await read_json(source, "config.json");
    const checkpoint = await open_checkpoint(source);
    for (const tensor of checkpoint.tensors.values()) {
      const size = tensor.dims.reduce((product, dim) => product * dim, tensor.dtype === "float32" ? 4 : 2);
      const bytes = await tensor.read(0, Math.min(size, MAX_READ));
      expect(bytes.byteLength).toBe(Math.min(size, MAX_READ));
    }
  } catch (error) {
    if (!(error instanceof VitMsnError)) throw error;
    expect(error.message.length).toBeLessThan(2000);
  }
  expect(performance.now() - start).toBeLessThan(LIMIT_MS);
}

const pickle = concat(
  op.proto(2),
  op.global("collections", "OrderedDict"),
  op.put(0),
  op.empty_tuple,
  op.reduce,
  op.set_items(op.unicode("x"), ordered_dict, op.short_unicode("y"), op.long(5n)),
  op.stop,
);
const small_torch = torch_file(
  state_dict_pickle({ a: { dims: [2, 3], strides: [3, 1] }, b: { dims: [3, 2], strides: [1, 3] } }),
);
const small_safetensors = (() => {
  const header = ascii(
    '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}',
  );
  return concat(new Uint8Array(new BigUint64Array([BigInt(header.byteLength)]).buffer), header, SIX);
})();
const INDEX = '{"weight_map":{"a":"model-1.safetensors","b":"model-1.safetensors"}}';

describe("damaged files give a VitMsnError or tensors in range", () => {
  let torch_fixture: Uint8Array;
  let safetensors_fixture: Uint8Array;
  beforeAll(async () => {
    torch_fixture = await read_file("test/fixtures/pytorch_bin/pytorch_model.bin");
    safetensors_fixture = await read_file("test/fixtures/tiny/model.safetensors");
  });

  const cases: [string, (damaged: (bytes: Uint8Array) => Uint8Array) => Record<string, Uint8Array>][] = [
    ["a small safetensors file", (damaged) => ({ "model.safetensors": damaged(small_safetensors) })],
    [
      "a safetensors header",
      (damaged) => {
        const end =
          8 +
          Number(
            new DataView(safetensors_fixture.buffer, safetensors_fixture.byteOffset).getBigUint64(0, true),
          );
        return {
          "model.safetensors": concat(
            damaged(safetensors_fixture.subarray(0, end)),
            safetensors_fixture.subarray(end),
          ),
        };
      },
    ],
    ["a small torch file", (damaged) => ({ "pytorch_model.bin": damaged(small_torch) })],
    ["a torch file's pickle", (damaged) => ({ "pytorch_model.bin": torch_file(damaged(pickle)) })],
    [
      "a torch file's state dict",
      (damaged) => ({
        "pytorch_model.bin": torch_file(
          damaged(
            state_dict_pickle({ a: { dims: [2, 3], strides: [3, 1] }, b: { dims: [3, 2], strides: [1, 3] } }),
          ),
        ),
      }),
    ],
    [
      "a torch file's directory",
      (damaged) => {
        const start = torch_fixture.byteLength - 4300;
        return {
          "pytorch_model.bin": concat(
            torch_fixture.subarray(0, start),
            damaged(torch_fixture.subarray(start)),
          ),
        };
      },
    ],
    [
      "a torch file's beginning",
      (damaged) => ({
        "pytorch_model.bin": concat(damaged(torch_fixture.subarray(0, 7000)), torch_fixture.subarray(7000)),
      }),
    ],
    [
      "an index",
      (damaged) => ({
        "model.safetensors.index.json": damaged(ascii(INDEX)),
        "model-1.safetensors": small_safetensors,
      }),
    ],
    [
      "a config",
      (damaged) => ({
        "config.json": damaged(
          ascii('{"hidden_size": 48, "id2label": {"0": "a\\u00e9"}, "x": [1.5e3, null, true]}'),
        ),
        "model.safetensors": small_safetensors,
      }),
    ],
  ];
  test.each(cases)("%s", { timeout: TIMEOUT_MS }, async (_, build) => {
    const mutations = fc.array(mutation, { minLength: 1, maxLength: 6 });
    const property = fc.asyncProperty(mutations, (list) => survives(build((bytes) => mutate(bytes, list))));
    await fc.assert(property, { numRuns: RUNS });
  });

  test("pickles of random instructions", { timeout: TIMEOUT_MS }, async () => {
    const instruction = fc.constantFrom(
      ...[...".(01N\x88\x89]})RQaesubt\x85\x86\x87\x94\x93"].map(
        (char) => new Uint8Array([char.charCodeAt(0)]),
      ),
      op.global("torch", "FloatStorage"),
      op.global("torch._utils", "_rebuild_tensor_v2"),
      op.global("torch._utils", "_rebuild_parameter"),
      op.global("collections", "OrderedDict"),
      op.unicode("storage"),
      op.unicode("0"),
      op.int(1),
      op.int(6),
      op.put(0),
      op.get(0),
      op.put(1),
      op.get(1),
    );
    const code = fc
      .array(instruction, { maxLength: 60 })
      .map((list) => concat(op.proto(2), ...list, op.stop));
    const property = fc.asyncProperty(code, (bytes) => survives({ "pytorch_model.bin": torch_file(bytes) }));
    await fc.assert(property, { numRuns: RUNS });
  });

  test("noise", { timeout: TIMEOUT_MS }, async () => {
    const noise = fc.uint8Array({ maxLength: 300 });
    const property = fc.asyncProperty(
      noise,
      fc.constantFrom("model.safetensors", "pytorch_model.bin"),
      (bytes, name) => survives({ [name]: bytes, "config.json": bytes.length % 2 ? ascii("{}") : bytes }),
    );
    await fc.assert(property, { numRuns: RUNS });
  });
});
