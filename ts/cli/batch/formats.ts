import { extname } from "node:path";
import { write_csv } from "./csv.ts";
import { MAX_TEXT, write_npy, write_npz } from "./numpy.ts";
import { write_parquet } from "./parquet.ts";
import { encode_row, type Format, json_line, split_lines, split_rows } from "./rows.ts";

/** For formats that can't be appended to: rows are collected in a separate file first. */
const spooled = { encode: encode_row, split: split_rows };

export const FORMATS = {
  jsonl: { encode: (row) => Buffer.from(json_line(row)), split: split_lines },
  csv: { ...spooled, write: write_csv },
  parquet: { ...spooled, write: write_parquet },
  npy: { ...spooled, write: write_npy, has_no_names: true },
  npz: { ...spooled, write: write_npz, max_text: MAX_TEXT },
} satisfies Record<string, Format>;

export type FormatName = keyof typeof FORMATS;

export const FORMAT_NAMES = Object.keys(FORMATS) as FormatName[];

/** The format that a file name's extension stands for. */
export function format_by_name(path: string): FormatName | undefined {
  const extension = extname(path).slice(1).toLowerCase();
  if (extension === "ndjson") return "jsonl";
  return FORMAT_NAMES.find((name) => name === extension);
}
