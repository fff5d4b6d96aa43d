import type { RandomAccessFile } from "../../loading/types.ts";
import type { ListKind } from "../data/image_lists.ts";
import { read_csv } from "./csv.ts";
import { read_jsonl } from "./jsonl.ts";
import { ParquetFile } from "./parquet.ts";
import { bad_file, bad_row } from "./table_errors.ts";

/** Bytes per read of a file. */
const PIECE = 256 * 1024;

export type TableKind = Exclude<ListKind, "tar">;

/** A row, with its values by column. */
export interface TableRow {
  /** The line, or in a Parquet file the row; counted from 1. */
  number: number;
  values: Readonly<Record<string, unknown>>;
}

/** A list of images and labels. */
export interface Table {
  /** For messages. */
  readonly name: string;
  /** What a row's number counts. */
  readonly unit: "line" | "row";
  readonly columns: readonly string[];
  /** Whether numbers are text, as in CSV. */
  readonly is_text: boolean;
  /** Parquet files know more of their columns. */
  readonly parquet?: ParquetFile;
  /** The rows, once. @param columns the ones to read. */
  rows(columns: readonly string[]): AsyncGenerator<TableRow>;
}

/** Opens a file again for each use. */
export type OpenAgain = () => Promise<RandomAccessFile>;

/** @throws VitMsnError INVALID_ARGUMENT if the file isn't of this kind. */
export async function open_table(name: string, kind: TableKind, open: OpenAgain): Promise<Table> {
  if (kind === "csv") return open_csv(name, open);
  if (kind === "jsonl") return open_jsonl(name, open);
  const parquet = await ParquetFile.open(name, open);
  const columns = parquet.columns.map((column) => column.name);
  const rows = async function* (wanted: readonly string[]): AsyncGenerator<TableRow> {
    let number = 0;
    for await (const values of parquet.rows(wanted)) yield { number: ++number, values };
  };
  return { name, unit: "row", columns, is_text: false, parquet, rows };
}

async function open_csv(name: string, open: OpenAgain): Promise<Table> {
  const header = await first_of(read_csv(chunks_of(open), name));
  if (header === undefined) throw bad_file(name, "is empty; its first line must name the columns");
  const columns = header.cells.map((cell) => cell.trim());
  const repeated = columns.find((column, i) => columns.indexOf(column) !== i);
  if (repeated !== undefined)
    throw bad_row(name, `line ${header.line}`, `has two columns ${JSON.stringify(repeated)}; rename one`);
  const rows = async function* (): AsyncGenerator<TableRow> {
    let is_header = true;
    for await (const { cells, line } of read_csv(chunks_of(open), name)) {
      if (!is_header && cells.length !== columns.length)
        throw bad_row(
          name,
          `line ${line}`,
          `has ${cells.length} cells, but the first line names ${columns.length} columns; quote cells that contain the separator`,
        );
      const values = Object.fromEntries(columns.map((column, i) => [column, cells[i]]));
      if (!is_header) yield { number: line, values };
      is_header = false;
    }
  };
  return { name, unit: "line", columns, is_text: true, rows };
}

async function open_jsonl(name: string, open: OpenAgain): Promise<Table> {
  const first = await first_of(read_jsonl(chunks_of(open), name));
  if (first === undefined) throw bad_file(name, "is empty; it needs a JSON object on each line");
  const rows = async function* (): AsyncGenerator<TableRow> {
    for await (const { value, line } of read_jsonl(chunks_of(open), name))
      yield { number: line, values: value };
  };
  return { name, unit: "line", columns: Object.keys(first.value), is_text: false, rows };
}

async function first_of<T>(items: AsyncGenerator<T>): Promise<T | undefined> {
  const { done, value } = await items.next();
  await items.return(undefined);
  return done ? undefined : value;
}

async function* chunks_of(open: OpenAgain): AsyncGenerator<Uint8Array> {
  const file = await open();
  try {
    for (let at = 0; at < file.size; at += PIECE) yield await file.read(at, Math.min(PIECE, file.size - at));
  } finally {
    await file.close();
  }
}
