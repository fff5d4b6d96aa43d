import { describe, expect, test } from "vitest";
import { memory_file } from "../../ts/loading/bytes.ts";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { crc32 } from "../../ts/loading/formats/crc32.web.ts";
import { read_pytorch_bin } from "../../ts/loading/formats/pytorch_bin.ts";
import { open_source } from "../../ts/loading/source.ts";
import type { CheckpointTensor } from "../../ts/loading/types.ts";
import { expect_error } from "../support/errors.ts";
import { read_file } from "../support/files.ts";
import { sparse_file } from "../support/sparse_file.ts";
import {
  ascii,
  bytes,
  concat,
  floats,
  type Member,
  op,
  ordered_dict,
  SIX,
  state_dict_pickle,
  type TorchTensor,
  tensor_pickle,
  torch_file,
  uint32,
  uint64,
  type ZipOptions,
  zip,
} from "../support/torch_archive.ts";

const open = async (file: Uint8Array) => open_checkpoint(await open_source({ "pytorch_model.bin": file }));
const MATRIX: TorchTensor = { dims: [2, 3], strides: [3, 1] };
const PLAIN = state_dict_pickle({ a: MATRIX });

/** The values of tensor "a" of a file. */
async function values_of(file: Uint8Array, key = "a"): Promise<number[]> {
  const tensor = (await open(file)).tensors.get(key);
  if (!tensor) throw new Error(`no tensor ${key}`);
  const length = tensor.dims.reduce((product, dim) => product * dim, 4);
  return [...new Float32Array((await tensor.read(0, length)).slice().buffer)];
}

test("the fixture that PyTorch wrote is read", async () => {
  const checkpoint = await open(await read_file("test/fixtures/pytorch_bin/pytorch_model.bin"));
  expect(checkpoint.tensors.size).toBe(56);
  const weight = checkpoint.tensors.get("vit.embeddings.patch_embeddings.projection.weight");
  expect(weight?.dims).toEqual([48, 3, 8, 8]);
  expect(weight?.dtype).toBe("float32");
  const data = await weight?.read(0, 48 * 3 * 8 * 8 * 4);
  const values = new Float32Array(data?.slice().buffer ?? new ArrayBuffer(0));
  expect(values.length).toBe(9216);
  expect(values.every(Number.isFinite)).toBe(true);
  expect(Math.max(...values.map(Math.abs))).toBeLessThan(1);
});

describe("sound files", () => {
  test("contiguous, transposed, sliced and tied tensors", async () => {
    const file = torch_file(
      state_dict_pickle({
        a: MATRIX,
        transposed: { dims: [3, 2], strides: [1, 3] },
        column: { dims: [2], strides: [3], offset: 1 },
        tail: { dims: [2], strides: [1], offset: 4 },
        scalar: { dims: [], strides: [], offset: 5 },
        empty: { dims: [0, 3], strides: [7, 9] },
        one: { dims: [1, 6], strides: [999, 1] },
      }),
    );
    expect(await values_of(file)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await values_of(file, "transposed")).toEqual([0, 3, 1, 4, 2, 5]);
    expect(await values_of(file, "column")).toEqual([1, 4]);
    expect(await values_of(file, "tail")).toEqual([4, 5]);
    expect(await values_of(file, "scalar")).toEqual([5]);
    expect(await values_of(file, "empty")).toEqual([]);
    expect(await values_of(file, "one")).toEqual([0, 1, 2, 3, 4, 5]);
    const transposed = (await open(file)).tensors.get("transposed");
    expect(await transposed?.read(6, 8)).toEqual(floats(0, 3, 1, 4, 2, 5).slice(6, 14));
    await expect_error(async () => transposed?.read(20, 8), "INVALID_CHECKPOINT", /"transposed"/);
  });

  test("half precision is a tensor, doubles are read as float32; integers are listed apart", async () => {
    const pickle = state_dict_pickle({
      half: { type: "HalfStorage", dims: [2], strides: [1], count: 2 },
      brain: { type: "BFloat16Storage", dims: [2], strides: [1], count: 2, storage: "1" },
      ids: { type: "LongStorage", dims: [1], strides: [1], count: 1, storage: "2" },
      double: { type: "DoubleStorage", dims: [1], strides: [1], count: 1, storage: "3" },
    });
    const checkpoint = await open(
      torch_file(pickle, { 0: bytes(1, 2, 3, 4), 1: bytes(1, 2, 3, 4), 2: uint64(1), 3: uint64(1) }),
    );
    expect(checkpoint.tensors.get("half")?.dtype).toBe("float16");
    expect(checkpoint.tensors.get("brain")?.dtype).toBe("bfloat16");
    expect([...checkpoint.unreadable]).toEqual([["ids", "int64"]]);
    expect(checkpoint.tensors.get("double")?.dtype).toBe("float32");
  });

  test("any folder in the archive, none, zip64, padding before the data", async () => {
    expect(await values_of(torch_file(PLAIN, { 0: SIX }, "pytorch_model/"))).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await values_of(torch_file(PLAIN, { 0: SIX }, ""))).toEqual([0, 1, 2, 3, 4, 5]);
    const members = [
      { name: "a/data.pkl", data: PLAIN },
      { name: "a/data/0", data: SIX, extra: concat(ascii("FB"), bytes(60, 0), new Uint8Array(60)) },
    ];
    expect(await values_of(zip(members))).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await values_of(zip(members, { zip64: true }))).toEqual([0, 1, 2, 3, 4, 5]);
  });

  test("an OrderedDict with _metadata, parameters, and the opcodes of protocol 4", async () => {
    const parameter = concat(
      op.global("torch._utils", "_rebuild_parameter"),
      op.tuple(tensor_pickle(MATRIX), bytes(0x88), ordered_dict),
      op.reduce,
    );
    const metadata = concat(op.empty_dict, op.set_items(op.short_unicode("_metadata"), ordered_dict));
    const pickle = concat(
      op.proto(4),
      bytes(0x95),
      uint64(1),
      op.stack_global("collections", "OrderedDict"),
      bytes(0x94),
      op.empty_tuple,
      op.reduce,
      op.set_items(op.short_unicode("a"), parameter),
      metadata,
      op.build,
      op.stop,
    );
    expect(await values_of(torch_file(pickle))).toEqual([0, 1, 2, 3, 4, 5]);
  });

  test.each(["state_dict", "model"])("a training script's file that holds it under %j", async (name) => {
    const inner = concat(op.empty_dict, op.set_items(op.unicode("a"), tensor_pickle(MATRIX)));
    const epoch = [
      op.unicode("epoch"),
      op.long(2n ** 40n),
      op.unicode("lr"),
      concat(ascii("G"), new Uint8Array(8)),
    ];
    const pickle = concat(
      op.proto(2),
      op.empty_dict,
      op.set_items(op.unicode(name), inner, ...epoch),
      op.stop,
    );
    expect(await values_of(torch_file(pickle))).toEqual([0, 1, 2, 3, 4, 5]);
  });
});

/** As torch pickles tensors of dtypes that are newer than its typed storages. */
function new_tensor(dtype: string, count: number, storage: string) {
  const id = op.tuple(
    op.unicode("storage"),
    op.global("torch.storage", "UntypedStorage"),
    op.unicode(storage),
    op.unicode("cpu"),
    op.int(count),
  );
  const args = [concat(id, op.persistent_id), op.int(0), op.tuple(op.int(2)), op.tuple(op.int(1)), op.no];
  return concat(
    op.global("torch._utils", "_rebuild_tensor_v3"),
    op.tuple(...args, ordered_dict, op.global("torch", dtype)),
    op.reduce,
  );
}

describe("other dtypes", () => {
  test("doubles and float8 are read as float32, strided ones too", async () => {
    const pickle = concat(
      op.proto(2),
      op.empty_dict,
      op.set_items(
        op.unicode("a"),
        tensor_pickle({ type: "DoubleStorage", dims: [2], strides: [2], count: 3 }),
        op.unicode("e4m3"),
        new_tensor("float8_e4m3fn", 2, "1"),
        op.unicode("e5m2"),
        new_tensor("float8_e5m2", 2, "2"),
        op.unicode("ids"),
        new_tensor("uint16", 4, "3"),
      ),
      op.stop,
    );
    const doubles = new Uint8Array(Float64Array.of(0.1, 2, -3.5).buffer);
    const file = torch_file(pickle, {
      0: doubles,
      1: bytes(0x7e, 0x81),
      2: bytes(0x7b, 0x01),
      3: bytes(1, 0, 2, 0),
    });
    expect(await values_of(file)).toEqual([Math.fround(0.1), -3.5]);
    expect(await values_of(file, "e4m3")).toEqual([448, -(2 ** -9)]);
    expect(await values_of(file, "e5m2")).toEqual([57344, 2 ** -16]);
    expect([...(await open(file)).unreadable]).toEqual([["ids", "uint16"]]);
  });

  test.each([
    ["float99", /asks for torch\.float99/],
    ["uint64", /shape \[2\] that doesn't fit/],
  ])("a new tensor of %s that can't be", async (dtype, message) => {
    const items = op.set_items(op.unicode("a"), new_tensor(dtype, 2, "0"));
    const pickle = concat(op.proto(2), op.empty_dict, items, op.stop);
    await expect_error(open(torch_file(pickle, { 0: bytes(1, 2) })), "INVALID_CHECKPOINT", message);
  });
});

describe("a small file can't stand for much", () => {
  const long = (count: number) => ({ 0: new Uint8Array(4 * count) });
  const tensors_of = async (tensors: Record<string, TorchTensor>, count: number) => [
    ...(await open(torch_file(state_dict_pickle(tensors), long(count)))).tensors.values(),
  ];
  const many = (length: number, tensor: TorchTensor) =>
    Object.fromEntries(Array.from({ length }, (_, i) => [`t${i}`, tensor]));

  test("tensors that share bytes are no more than the file together", async () => {
    const tensors = await tensors_of(many(5, { dims: [10_000], strides: [1], count: 10_000 }), 10_000);
    for (let again = 0; again < 9; again++) await (tensors[0] as CheckpointTensor).read(0, 40_000);
    await expect_error(
      async () => (tensors[1] as CheckpointTensor).read(0, 4),
      "INVALID_CHECKPOINT",
      /share storage.*clone/,
    );
  });

  test("slices of one storage are read with it, once; such reads are no more than 32 files together", async () => {
    const slice = (storage: string): TorchTensor => ({
      dims: [2],
      strides: [19_999],
      count: 20_000,
      storage,
    });
    for (const tensor of await tensors_of(many(60, slice("0")), 20_000)) {
      expect(await tensor.read(0, 8)).toEqual(new Uint8Array(8));
    }
    const apart = many(200, slice("0"));
    for (let i = 1; i < 200; i += 2) apart[`t${i}`] = slice("1");
    const storages = { 0: new Uint8Array(80_000), 1: new Uint8Array(80_000) };
    const { tensors } = await open(torch_file(state_dict_pickle(apart), storages));
    await expect_error(
      async () => {
        for (const tensor of tensors.values()) await tensor.read(0, 8);
      },
      "INVALID_CHECKPOINT",
      /non-contiguous.*32 times.*contiguous\(\)/,
    );
  });

  test("a transposed tensor's bytes are read once, however many pieces it is taken in", async () => {
    const pickle = state_dict_pickle({ a: { dims: [100, 100], strides: [1, 100], count: 10_000 } });
    const values = Float32Array.from({ length: 10_000 }, (_, i) => i);
    const file = memory_file("pytorch_model.bin", torch_file(pickle, { 0: new Uint8Array(values.buffer) }));
    let bytes_read = 0;
    const { tensors } = await read_pytorch_bin({
      ...file,
      read: (offset, length) => {
        bytes_read += length;
        return file.read(offset, length);
      },
    });
    const before = bytes_read;
    const pieces: Uint8Array[] = [];
    for (let row = 0; row < 100; row++) {
      pieces.push(await (tensors[0] as CheckpointTensor).read(400 * row, 400));
    }
    expect(bytes_read - before).toBe(40_000);
    const transposed = new Float32Array(concat(...pieces).buffer);
    expect(transposed.every((value, i) => value === (i % 100) * 100 + Math.floor(i / 100))).toBe(true);
  });
});

describe("CRC-32", () => {
  const archive = (pickle_crc: number, storage_crc: number) =>
    zip([
      { name: "a/data.pkl", data: PLAIN, crc32: pickle_crc },
      { name: "a/data/0", data: SIX, crc32: storage_crc },
    ]);

  test("is that of zip, whole and in parts", () => {
    expect(crc32(ascii("123456789"))).toBe(0xcbf43926);
    const data = Uint8Array.from({ length: 1000 }, (_, i) => i * i);
    expect(crc32(data.subarray(333), crc32(data.subarray(0, 333)))).toBe(crc32(data));
  });

  test("of the pickle and of the storages is verified as they are read", async () => {
    expect(await values_of(archive(crc32(PLAIN), crc32(SIX)))).toEqual([0, 1, 2, 3, 4, 5]);
    await expect_error(open(archive(crc32(PLAIN) ^ 1, 0)), "INVALID_CHECKPOINT", /CRC-32 of a\/data\.pkl/);
    const tensor = (await open(archive(0, crc32(SIX) ^ 1))).tensors.get("a");
    await tensor?.read(0, 8);
    await tensor?.read(8, 12);
    await expect_error(async () => tensor?.read(20, 4), "INVALID_CHECKPOINT", /CRC-32 of a\/data\/0/);
  });

  test("isn't missed where an archive was written without", async () => {
    expect(await values_of(archive(0, 0))).toEqual([0, 1, 2, 3, 4, 5]);
  });
});

describe("a pickle that asks for anything but tensors is refused by name", () => {
  const command = op.tuple(op.unicode("touch /tmp/hacked"));
  const refused: [string, Uint8Array, RegExp][] = [
    [
      "os.system by GLOBAL",
      concat(op.global("os", "system"), command, op.reduce),
      /asks for os\.system, .* Loading executes nothing/,
    ],
    [
      "os.system by STACK_GLOBAL",
      concat(op.stack_global("os", "system"), command, op.reduce),
      /asks for os\.system/,
    ],
    [
      "posix.system by INST",
      concat(op.mark, op.unicode("ls"), ascii("iposix\nsystem\n")),
      /asks for posix\.system/,
    ],
    ["builtins.eval", concat(op.global("builtins", "eval"), command, op.reduce), /builtins\.eval/],
    [
      "a name with dots that spells an allowed one",
      op.stack_global("torch", "_utils._rebuild_tensor_v2\n"),
      /asks for torch\._utils/,
    ],
    ["control characters in a name", op.stack_global("os", "\u001b[2Jsystem"), /asks for os\.\?\[2Jsystem/],
    [
      "a whole model",
      concat(
        op.global("transformers.models.vit_msn.modeling_vit_msn", "ViTMSNModel"),
        op.empty_tuple,
        bytes(0x81),
      ),
      /ViTMSNModel/,
    ],
    [
      "a new object of an allowed class",
      concat(op.global("collections", "OrderedDict"), op.empty_tuple, bytes(0x81)),
      /instruction 0x81/,
    ],
    ["an extension", bytes(0x82, 1), /instruction 0x82/],
    [
      "a call of a storage class",
      concat(op.global("torch", "FloatStorage"), op.empty_tuple, op.reduce),
      /a call of torch\.FloatStorage/,
    ],
    ["a call of a string", concat(op.unicode("print"), op.empty_tuple, op.reduce), /a call of something/],
    [
      "a call without a tuple",
      concat(op.global("collections", "OrderedDict"), op.empty_list, op.reduce),
      /a call of something/,
    ],
    [
      "attributes on a tensor",
      concat(tensor_pickle(MATRIX), op.empty_dict, op.build),
      /attributes to be set/,
    ],
    [
      "attributes on a function",
      concat(op.global("torch._utils", "_rebuild_tensor_v2"), op.empty_dict, op.build),
      /attributes to be set/,
    ],
    ["bytes", bytes(0x43, 1, 0), /instruction 0x43/],
    ["text opcodes", ascii("I1\n"), /instruction 0x49/],
  ];
  test.each(refused)("%s", async (_, code, message) => {
    await expect_error(open(torch_file(concat(op.proto(2), code, op.stop))), "INVALID_CHECKPOINT", message);
  });
});

describe("a pickle that is broken or a bomb is refused", () => {
  const nested = (levels: number, instruction: Uint8Array) => {
    const code = new Uint8Array(levels * instruction.byteLength);
    for (let level = 0; level < levels; level++) code.set(instruction, level * instruction.byteLength);
    return code;
  };
  const long_string = concat(ascii("X"), uint32(0xffffffff), ascii("short"));
  const cases: [string, Uint8Array, RegExp][] = [
    ["nothing", bytes(), /ends early/],
    ["no end", op.empty_dict, /ends early/],
    ["an empty stack", op.stop, /isn't there/],
    ["a stack of marks only", concat(op.mark, op.stop), /isn't there/],
    ["a tuple without a mark", ascii("t."), /never opened/],
    ["protocol 0", concat(op.proto(0), op.empty_dict, op.stop), /protocol 0/],
    ["protocol 9", concat(op.proto(9), op.empty_dict, op.stop), /protocol 9/],
    ["a memo index of 2^32-1", concat(op.empty_dict, op.put(0xffffffff), op.stop), /memo index 4294967295/],
    ["a memo index never written", concat(op.get(7), op.stop), /memo index 7, which was never written/],
    ["a string of 4 GB", concat(long_string, op.stop), /4294967295 bytes are needed/],
    ["a string of 2^63 bytes", concat(bytes(0x8d), uint64(2n ** 63n), op.stop), /bytes are needed/],
    ["a frame past the end", concat(op.proto(4), bytes(0x95), uint64(1000), op.stop), /frame of 1000 bytes/],
    [
      "an integer of 200 bytes",
      concat(bytes(0x8a, 200), new Uint8Array(200), op.stop),
      /integer of 200 bytes/,
    ],
    ["a string that isn't UTF-8", concat(bytes(0x8c, 2, 0xff, 0xfe), op.stop), /isn't UTF-8/],
    ["a name without an end", concat(ascii("c"), ascii("x".repeat(2000))), /name without an end/],
    [
      "items of a string",
      concat(op.unicode("a"), op.set_items(op.unicode("b"), op.unicode("c")), op.stop),
      /isn't a dict/,
    ],
    ["an odd number of items", concat(op.empty_dict, op.set_items(op.unicode("b")), op.stop), /isn't a dict/],
    ["a list of a string", concat(op.unicode("a"), op.unicode("b"), ascii("a.")), /isn't a list/],
    [
      "a recursion of a million tuples",
      concat(op.empty_tuple, nested(1_000_000, bytes(0x85)), op.stop),
      /doesn't contain a dict of tensors/,
    ],
    ["two million instructions", nested(2_100_000, ascii("N0")), /more than 2000000 instructions/],
    ["a stack of a million values", nested(1_100_000, ascii("N")), /stacks more than 1000000/],
    [
      "a billion laughs of tuples",
      concat(op.empty_tuple, nested(10_000, concat(op.put(0), op.get(0), bytes(0x86))), op.stop),
      /isn't there|doesn't contain a dict of tensors/,
    ],
    [
      "a billion laughs of dicts",
      concat(
        op.empty_dict,
        nested(
          1000,
          concat(
            op.put(1),
            ascii("0"),
            op.empty_dict,
            op.set_items(op.unicode("a"), op.get(1), op.unicode("b"), op.get(1)),
          ),
        ),
        op.stop,
      ),
      /a dict without tensors/,
    ],
    [
      "a dict that holds itself",
      concat(op.empty_dict, op.put(0), op.set_items(op.unicode("model"), op.get(0)), op.stop),
      /a dict without tensors/,
    ],
    ["a list", concat(op.empty_list, op.stop), /doesn't contain a dict of tensors/],
    ["an empty dict", concat(op.empty_dict, op.stop), /a dict without tensors/],
    [
      "an OrderedDict from items",
      concat(op.global("collections", "OrderedDict"), op.tuple(op.empty_list), op.reduce, op.stop),
      /unknown form/,
    ],
    [
      "a parameter of no tensor",
      concat(op.global("torch._utils", "_rebuild_parameter"), op.tuple(op.no), op.reduce, op.stop),
      /isn't a tensor/,
    ],
    [
      "a persistent id of another form",
      concat(op.unicode("module"), op.persistent_id, op.stop),
      /storage in an unknown form/,
    ],
  ];
  test.each(cases)("%s", async (_, pickle, message) => {
    await expect_error(open(torch_file(pickle)), "INVALID_CHECKPOINT", message);
  });
});

describe("a tensor that lies about its storage is refused", () => {
  test.each<[string, TorchTensor, RegExp]>([
    [
      "a storage that isn't there",
      { ...MATRIX, storage: "9" },
      /storage "9", which the file doesn't contain/,
    ],
    ["a storage by a path", { ...MATRIX, storage: "../version" }, /which the file doesn't contain/],
    [
      "more elements than the storage",
      { ...MATRIX, count: 600 },
      /claims 600 elements of 4 bytes in archive\/data\/0, which has 24 bytes/,
    ],
    ["fewer elements than the storage", { ...MATRIX, count: 5 }, /claims 5 elements/],
    ["a negative count", { ...MATRIX, count: -1 }, /unknown form/],
    ["a shape beyond the storage", { dims: [2, 4], strides: [4, 1] }, /shape \[2,4\]/],
    ["an offset beyond the storage", { ...MATRIX, offset: 1 }, /doesn't fit/],
    ["an offset of an empty tensor", { dims: [0], strides: [1], offset: 7 }, /doesn't fit/],
    ["a negative offset", { ...MATRIX, offset: -1 }, /unknown form/],
    ["a negative stride", { dims: [2], strides: [-1] }, /unknown form/],
    ["a negative size", { dims: [-2], strides: [1] }, /unknown form/],
    ["more sizes than strides", { dims: [2, 3], strides: [1] }, /unknown form/],
    ["one element that stands for 2^60", { dims: [2 ** 30, 2 ** 30], strides: [0, 0] }, /doesn't fit/],
    ["repetition of the storage", { dims: [100, 6], strides: [0, 1] }, /doesn't fit/],
    [
      "strides that overflow",
      { dims: [2, 2, 2], strides: [2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1] },
      /doesn't fit/,
    ],
    ["65 axes", { dims: Array(65).fill(1), strides: Array(65).fill(1) }, /unknown form/],
    ["a type that isn't a storage's", { ...MATRIX, type: "device" }, /asks for torch\.device/],
  ])("%s", async (_, tensor, message) => {
    await expect_error(open(torch_file(state_dict_pickle({ a: tensor }))), "INVALID_CHECKPOINT", message);
  });

  test("one storage as two types", async () => {
    const pickle = state_dict_pickle({ a: MATRIX, b: { ...MATRIX, type: "IntStorage" } });
    await expect_error(open(torch_file(pickle)), "INVALID_CHECKPOINT", /as two types/);
  });
});

describe("an archive that is broken or a bomb is refused", () => {
  const pickle_member: Member = { name: "a/data.pkl", data: PLAIN };
  const storage: Member = { name: "a/data/0", data: SIX };
  const both = [pickle_member, storage];
  test.each<[string, Member[], ZipOptions, RegExp]>([
    ["a deflated entry", [pickle_member, { ...storage, method: 8 }], {}, /compressed entry "a\/data\/0"/],
    [
      "a deflated entry of 4 GB",
      [pickle_member, { ...storage, method: 8, claimed_size: 0xfffffff0 }],
      {},
      /overlaps|past the file/,
    ],
    [
      "a stored entry of 4 GB",
      [pickle_member, { ...storage, claimed_size: 0xfffffff0 }],
      {},
      /overlaps|past the file/,
    ],
    [
      "an entry one byte too long",
      [{ ...pickle_member, claimed_size: PLAIN.byteLength + 1 }, storage],
      {},
      /overlaps/,
    ],
    [
      "an entry of two sizes",
      [pickle_member, { ...storage, claimed_packed_size: SIX.byteLength - 4 }],
      {},
      /"a\/data\/0" with two different sizes/,
    ],
    [
      "an overlapping entry that nothing reads",
      [pickle_member, storage, { name: "a/x", data: SIX, claimed_offset: 40 }],
      {},
      /overlaps another or reaches past the file/,
    ],
    ["an encrypted entry", [pickle_member, { ...storage, flags: 1 }], {}, /encrypted entry/],
    [
      "an entry without its 64-bit size",
      [pickle_member, { ...storage, claimed_size: 0xffffffff }],
      {},
      /64-bit size/,
    ],
    ["overlapping entries", [pickle_member, { ...storage, claimed_offset: 0 }], {}, /overlaps/],
    [
      "an entry far outside",
      [pickle_member, { ...storage, claimed_offset: 0x7fffffff }],
      {},
      /past the file/,
    ],
    [
      "an entry that isn't where it should be",
      [pickle_member, { ...storage, claimed_offset: 37, data: new Uint8Array(0) }],
      {},
      /overlaps/,
    ],
    [
      "an entry of two names",
      [pickle_member, { ...storage, local_name: "a/data/9" }],
      {},
      /calls one entry both/,
    ],
    ["a name given twice", [pickle_member, pickle_member], {}, /lists "a\/data.pkl" twice/],
    ["two pickles", [pickle_member, { ...pickle_member, name: "b/data.pkl" }], {}, /2 files named data.pkl/],
    ["no pickle", [storage], {}, /0 files named data.pkl/],
    ["more entries than it has", both, { claimed_count: 3 }, /cut off|claims 3/],
    ["fewer entries than it has", both, { claimed_count: 1 }, /longer than its entries/],
    ["60,000 entries", both, { claimed_count: 60_000 }, /claims 60000 zip entries/],
    [
      "2^50 entries in zip64",
      both,
      { claimed_count: 2 ** 50, zip64: true },
      /claims 1125899906842624 zip entries/,
    ],
    ["several disks", both, { disk: 1 }, /several disks/],
  ])("%s", async (_, members, options, message) => {
    await expect_error(open(zip(members, options)), "INVALID_CHECKPOINT", message);
  });

  test("an entry whose local header moves its data over the next one", async () => {
    const file = zip(both);
    // The length of the local header's extra field, which the directory doesn't repeat.
    new DataView(file.buffer).setUint16(28, 4, true);
    await expect_error(open(file), "INVALID_CHECKPOINT", /an entry "a\/data\.pkl" that overlaps the next/);
  });

  test("a directory of more than 16 MiB, before it is read", async () => {
    const listing_bytes = 16 * 1024 * 1024 + 1;
    const end = zip([]);
    new DataView(end.buffer).setUint32(12, listing_bytes, true);
    const file = sparse_file(
      "pytorch_model.bin",
      listing_bytes + end.byteLength,
      [0, ascii("PK\x03\x04")],
      [listing_bytes, end],
    );
    await expect_error(
      read_pytorch_bin(file),
      "INVALID_CHECKPOINT",
      /zip directory of 16777217 bytes, more than 16777216/,
    );
  });

  test("a data.pkl of more than 64 MiB, before it is read", async () => {
    const size = 64 * 1024 * 1024 + 1;
    const archive = zip([{ ...pickle_member, data: new Uint8Array(0), claimed_size: size }]);
    const local_bytes = 30 + pickle_member.name.length;
    const listing = archive.slice(local_bytes);
    // The directory begins behind the data that the entry claims.
    const end = new DataView(listing.buffer, listing.byteLength - 22);
    end.setUint32(16, local_bytes + size, true);
    const file = sparse_file(
      "pytorch_model.bin",
      local_bytes + size + listing.byteLength,
      [0, archive.subarray(0, local_bytes)],
      [local_bytes + size, listing],
    );
    await expect_error(
      read_pytorch_bin(file),
      "INVALID_CHECKPOINT",
      /data\.pkl of 67108865 bytes, more than 67108864/,
    );
  });

  test("another byte order", async () => {
    const file = zip([pickle_member, storage, { name: "a/byteorder", data: ascii("big") }]);
    await expect_error(open(file), "UNSUPPORTED", /byte order "big"/);
  });

  test("the format before PyTorch 1.6 says how to convert", async () => {
    const legacy = bytes(
      0x80,
      0x02,
      0x8a,
      0x0a,
      0x6c,
      0xfc,
      0x9c,
      0x46,
      0xf9,
      0x20,
      0x6a,
      0xa8,
      0x50,
      0x19,
      0x2e,
    );
    await expect_error(open(legacy), "UNSUPPORTED", /before 1\.6.*safetensors\.torch\.save_file/);
  });

  test.each<[string, Uint8Array, RegExp]>([
    ["nothing", bytes(), /doesn't begin like a zip/],
    ["text", ascii("hello"), /doesn't begin like a zip/],
    ["a web page", ascii("<!doctype html><title>x</title>"), /web page/],
    ["a Git LFS pointer", ascii("version https://git-lfs.github.com/spec/v1\noid"), /git lfs pull/],
    ["a zip's first bytes", ascii("PK\x03\x04"), /no zip directory/],
  ])("%s", async (_, file, message) => {
    await expect_error(open(file), "INVALID_CHECKPOINT", message);
  });

  test("every truncation of a sound file", async () => {
    const whole = torch_file(PLAIN);
    for (let length = 0; length < whole.byteLength; length++) {
      await expect_error(open(whole.subarray(0, length)), "INVALID_CHECKPOINT", /pytorch_model\.bin/);
    }
  });
});
