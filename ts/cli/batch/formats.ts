import { extname } from "node:path";
import { write_npy, write_npz } from "./numpy.ts";
import { write_parquet } from "./parquet.ts";
import { encode_row, type Format, json_line } from "./rows.ts";

export const FORMATS = {
  jsonl: { encode: json_line },
  parquet: { encode: encode_row, write: write_parquet },
  npy: { encode: encode_row, write: write_npy, has_no_names: true },
  npz: { encode: encode_row, write: write_npz },
} satisfies Record<string, Format>;

export type FormatName = keyof typeof FORMATS;

export const FORMAT_NAMES = Object.keys(FORMATS) as FormatName[];

/** The format that a file's name asks for. */
export function format_by_name(path: string): FormatName | undefined {
  const extension = extname(path).slice(1).toLowerCase();
  if (extension === "ndjson") return "jsonl";
  return FORMAT_NAMES.find((name) => name === extension);
}
