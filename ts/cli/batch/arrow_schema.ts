import { Builder, type Offset } from "flatbuffers";

// Arrow's schema of a Parquet file, which Arrow's readers (pyarrow, pandas, polars) look for in the file's metadata:
// Parquet itself has no lists of a fixed size. The tables and numbers below are those of Schema.fbs and Message.fbs in
// https://github.com/apache/arrow/tree/main/format.

export interface ArrowColumn {
  name: string;
  type: "utf8" | "float32";
  /** For a list: its length in every row. */
  list_size?: number;
}

const FLOATING_POINT = 3;
const UTF8 = 5;
const FIXED_SIZE_LIST = 16;
const SINGLE_PRECISION = 1;
const METADATA_V5 = 4;
const SCHEMA_HEADER = 1;
/** Precedes a message, with the message's length. */
const CONTINUATION = 0xffffffff;
const PREFIX_BYTES = 8;
/** Of messages, with their prefix. */
const ALIGNMENT = 8;

export interface KeyValue {
  key: string;
  value: string;
}

/**
 * The value of the key ARROW:schema for these columns, none of which is nullable: an IPC message in base64.
 * @param metadata the file's metadata, which readers only take from this schema once there is one.
 */
export function arrow_schema(columns: readonly ArrowColumn[], metadata: readonly KeyValue[]): string {
  const builder = new Builder();
  const fields = columns.map(({ name, type, list_size }) =>
    list_size === undefined ? leaf(builder, name, type) : list(builder, name, type, list_size),
  );
  const fields_vector = offsets(builder, fields);
  const metadata_vector = offsets(
    builder,
    metadata.map((entry) => key_value(builder, entry)),
  );
  const schema = table(builder, 3, () => {
    builder.addFieldOffset(1, fields_vector, 0);
    builder.addFieldOffset(2, metadata_vector, 0);
  });
  const message = table(builder, 4, () => {
    builder.addFieldInt16(0, METADATA_V5, 0);
    builder.addFieldInt8(1, SCHEMA_HEADER, 0);
    builder.addFieldOffset(2, schema, 0);
  });
  builder.finish(message);
  const bytes = builder.asUint8Array();
  const length = Math.ceil(bytes.length / ALIGNMENT) * ALIGNMENT;
  const result = Buffer.alloc(PREFIX_BYTES + length);
  result.writeUInt32LE(CONTINUATION);
  result.writeUInt32LE(length, 4);
  result.set(bytes, PREFIX_BYTES);
  return result.toString("base64");
}

function leaf(builder: Builder, name: string, type: ArrowColumn["type"]): Offset {
  if (type === "utf8") return field(builder, name, UTF8, table(builder, 0), []);
  const precision = () => builder.addFieldInt16(0, SINGLE_PRECISION, 0);
  return field(builder, name, FLOATING_POINT, table(builder, 1, precision), []);
}

function list(builder: Builder, name: string, type: ArrowColumn["type"], size: number): Offset {
  const element = leaf(builder, "element", type);
  const list_type = table(builder, 1, () => builder.addFieldInt32(0, size, 0));
  return field(builder, name, FIXED_SIZE_LIST, list_type, [element]);
}

/** Field 1, whether it is nullable, is false by default. */
function field(builder: Builder, name: string, kind: number, type: Offset, children: Offset[]): Offset {
  const text = builder.createString(name);
  const vector = offsets(builder, children);
  return table(builder, 7, () => {
    builder.addFieldOffset(0, text, 0);
    builder.addFieldInt8(2, kind, 0);
    builder.addFieldOffset(3, type, 0);
    builder.addFieldOffset(5, vector, 0);
  });
}

function key_value(builder: Builder, entry: KeyValue): Offset {
  const key = builder.createString(entry.key);
  const value = builder.createString(entry.value);
  return table(builder, 2, () => {
    builder.addFieldOffset(0, key, 0);
    builder.addFieldOffset(1, value, 0);
  });
}

/** A table of up to `fields` fields. What they refer to must have been written before. */
function table(builder: Builder, fields: number, add = () => {}): Offset {
  builder.startObject(fields);
  add();
  return builder.endObject();
}

function offsets(builder: Builder, list: readonly Offset[]): Offset {
  builder.startVector(4, list.length, 4);
  for (const offset of [...list].reverse()) builder.addOffset(offset);
  return builder.endVector();
}
