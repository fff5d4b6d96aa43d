import { describe, expect, test } from "vitest";
import { blob_file, memory_file } from "../../ts/loading/bytes.ts";
import type { RandomAccessFile } from "../../ts/loading/types.ts";
import { expect_error } from "../support/errors.ts";

const BYTES = new Uint8Array([1, 2, 3, 4]);

describe.each<[string, RandomAccessFile]>([
  ["a file in memory", memory_file("weights.bin", BYTES)],
  ["a Blob", blob_file("weights.bin", new Blob([BYTES]))],
])("%s", (_, file) => {
  test("is read up to its last byte", async () => {
    expect([...(await file.read(0, 4))]).toEqual([1, 2, 3, 4]);
    expect([...(await file.read(3, 1))]).toEqual([4]);
    expect([...(await file.read(4, 0))]).toEqual([]);
  });

  test.each([
    [3, 2],
    [4, 1],
    [0, 5],
    [5, 0],
    [-1, 1],
    [0, -1],
    [0.5, 1],
    [0, 1.5],
    [2 ** 53, 1],
  ])("isn't read from byte %s over %s bytes", async (offset, length) => {
    await expect_error(() => file.read(offset, length), "INVALID_CHECKPOINT", /^weights\.bin ends early/);
  });
});
