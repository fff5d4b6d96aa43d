import type { SchemaElement } from "hyparquet";
import { ByteWriter, ParquetWriter } from "hyparquet-writer";
import { type Digest, write_file } from "../../files/index.ts";
import { type ArrowColumn, arrow_schema } from "./arrow_schema.ts";
import type { Row, RowFile } from "./rows.ts";

/** Limits of a row group, whose rows are all in memory at once. */
const VALUES_IN_GROUP = 1 << 20;
const MAX_ROWS_IN_GROUP = 10_000;

/** The options in the file's metadata, besides the program's version. */
const DESCRIBED = ["command", "model", "revision", "dtype", "attn", "pool", "top_k"];

/**
 * Columns: `image`, and `embedding` (list of float), or `labels` (list of string) and `scores` (list of float); to readers
 * that know Arrow's schema, lists of a fixed size.
 * The file's metadata says what made it: a key `vit_msn.model` and so on, with JSON as values.
 * The size of row groups doesn't depend on when rows were computed, so the same rows give the same bytes.
 */
export async function write_parquet(path: string, file: RowFile): Promise<Digest> {
  return write_file(path, parquet(file));
}

async function* parquet({ rows, width, has_labels, about }: RowFile): AsyncGenerator<Uint8Array> {
  const buffer = new ByteWriter();
  const metadata = DESCRIBED.filter((name) => about[name] !== undefined).map((name) => ({
    key: `vit_msn.${name}`,
    value: JSON.stringify(about[name]),
  }));
  const writer = new ParquetWriter({
    writer: buffer,
    schema: schema(has_labels),
    kvMetadata: [
      ...metadata,
      { key: "ARROW:schema", value: arrow_schema(arrow_columns(width, has_labels), metadata) },
    ],
    createdBy: `vit-msn ${about.version}`,
  });
  const group_size = Math.max(
    1,
    Math.min(MAX_ROWS_IN_GROUP, Math.floor(VALUES_IN_GROUP / Math.max(1, width))),
  );
  const encode = (group: Row[]) => {
    writer.write({ columnData: columns(group, has_labels), rowGroupSize: group_size });
    return take_written(buffer);
  };
  let group: Row[] = [];
  for await (const row of rows()) {
    group.push(row);
    if (group.length < group_size) continue;
    yield encode(group);
    group = [];
  }
  if (group.length > 0) yield encode(group);
  writer.finish();
  yield take_written(buffer);
}

function arrow_columns(list_size: number, has_labels: boolean): ArrowColumn[] {
  const lists: ArrowColumn[] = has_labels
    ? [
        { name: "labels", type: "utf8", list_size },
        { name: "scores", type: "float32", list_size },
      ]
    : [{ name: "embedding", type: "float32", list_size }];
  return [{ name: "image", type: "utf8" }, ...lists];
}

/** Takes the bytes written since the last call; the writer's offset continues. */
function take_written(buffer: ByteWriter): Uint8Array {
  const bytes = buffer.getBytes().slice();
  buffer.index = 0;
  return bytes;
}

function columns(rows: readonly Row[], has_labels: boolean) {
  const images = { name: "image", data: rows.map(({ image }) => image) };
  const values = {
    name: has_labels ? "scores" : "embedding",
    data: rows.map((row) => Array.from(row.values)),
    // A dictionary or compression of floats takes long and gains nothing.
    encoding: "PLAIN" as const,
    codec: "UNCOMPRESSED" as const,
    statistics: false,
  };
  const labels = { name: "labels", data: rows.map((row) => [...(row.labels ?? [])]) };
  return has_labels ? [images, labels, values] : [images, values];
}

function schema(has_labels: boolean): SchemaElement[] {
  const image: SchemaElement = {
    name: "image",
    type: "BYTE_ARRAY",
    converted_type: "UTF8",
    repetition_type: "REQUIRED",
  };
  const lists = has_labels
    ? [
        ...list("labels", { type: "BYTE_ARRAY", converted_type: "UTF8" }),
        ...list("scores", { type: "FLOAT" }),
      ]
    : list("embedding", { type: "FLOAT" });
  return [{ name: "root", num_children: has_labels ? 3 : 2 }, image, ...lists];
}

/** A list in Parquet's three levels, none of them nullable. */
function list(name: string, element: Pick<SchemaElement, "type" | "converted_type">): SchemaElement[] {
  return [
    { name, repetition_type: "REQUIRED", num_children: 1, converted_type: "LIST" },
    { name: "list", repetition_type: "REPEATED", num_children: 1 },
    { name: "element", repetition_type: "REQUIRED", ...element },
  ];
}
