import { type ColumnMetaData, type FileMetaData, parquetSchema } from "hyparquet";
import { getTreePath } from "hyparquet/src/schema.js";
import { describe, expect, test } from "vitest";
import { check_pages } from "../../ts/training/tables/parquet_pages.ts";

const ROWS = 4;
/** Thrift's compact form of small positive numbers. */
const number = (value: number): number[] =>
  value < 64 ? [2 * value] : [((2 * value) % 128) | 128, (2 * value) >> 7];

/** A data page of optional INT32 values: its header, the levels behind their length, and the values. */
function page(levels: readonly number[], count = ROWS, uncompressed?: number): Uint8Array<ArrayBuffer> {
  const values = new Array(4 * ROWS).fill(1);
  const content = [levels.length, 0, 0, 0, ...levels, ...values];
  const header = [0x15, 0, 0x15, ...number(uncompressed ?? content.length), 0x15, ...number(content.length)];
  const data_header = [0x2c, 0x15, ...number(count), 0x15, 0, 0x15, 6, 0x15, 6, 0, 0];
  return Uint8Array.of(...header, ...data_header, ...content);
}

function check(bytes: Uint8Array<ArrayBuffer>, chunk: Partial<ColumnMetaData> = {}): void {
  const schema = [
    { name: "root", num_children: 1 },
    { name: "label", type: "INT32", repetition_type: "OPTIONAL" },
  ];
  const path = getTreePath(parquetSchema({ schema } as unknown as FileMetaData), ["label"]);
  const facts = {
    type: "INT32",
    codec: "UNCOMPRESSED",
    num_values: BigInt(ROWS),
    ...chunk,
  } as ColumnMetaData;
  check_pages(bytes, facts, path, ROWS);
}

describe("the pages of a Parquet file are checked before the parser expands them", () => {
  test("sound ones pass", () => {
    expect(() => check(page([2 * ROWS, 1]))).not.toThrow();
    expect(() => check(page([3, 0b1111]))).not.toThrow();
  });

  test.each([
    [
      "a run of 2^30 values",
      page([0x80, 0x80, 0x80, 0x80, 0x08, 1]),
      {},
      /a run claims 1073741824 values of a page of 4/,
    ],
    ["2^34 packed values", page([0xff, 0xff, 0xff, 0xff, 0x0f, 1]), {}, /a run claims 17179869176 values/],
    ["a number that never ends", page(new Array(20).fill(0x80)), {}, /a run is cut/],
    ["more values than the column", page([2 * ROWS, 1], 60), {}, /a page claims 60 values/],
    [
      "more values than rows",
      page([2 * ROWS, 1]),
      { num_values: 10n ** 12n },
      /a column claims 1000000000000 values/,
    ],
    ["a page that is cut", page([2 * ROWS, 1]).slice(0, 30), {}, /a page is cut/],
    [
      "a page that expands to far more",
      page([2 * ROWS, 1], ROWS, 5000),
      { codec: "SNAPPY" },
      /claims to expand to 5000/,
    ],
  ] as const)("%s is refused", (_, bytes, chunk, message) => {
    expect(() => check(bytes, chunk)).toThrow(message);
  });
});
