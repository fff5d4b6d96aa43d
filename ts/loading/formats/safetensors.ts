import type { WeightDtype } from "../../dtypes.ts";
import { VitMsnError } from "../../errors.ts";
import { decode_utf8, refuse_lookalikes, view_of } from "../bytes.ts";
import { type JsonLimits, parse_json } from "../json.ts";
import type { RandomAccessFile } from "../types.ts";

/** Bits of one element, for every dtype that the format knows. */
const DTYPE_BITS: ReadonlyMap<string, number> = new Map([
  ["F4", 4],
  ["F6_E2M3", 6],
  ["F6_E3M2", 6],
  ["BOOL", 8],
  ["U8", 8],
  ["I8", 8],
  ["F8_E5M2", 8],
  ["F8_E4M3", 8],
  ["F8_E8M0", 8],
  ["F8_E4M3FNUZ", 8],
  ["F8_E5M2FNUZ", 8],
  ["I16", 16],
  ["U16", 16],
  ["F16", 16],
  ["BF16", 16],
  ["I32", 32],
  ["U32", 32],
  ["F32", 32],
  ["I64", 64],
  ["U64", 64],
  ["F64", 64],
  ["C64", 64],
]);
/** The safetensors library's limit. */
const MAX_HEADER_BYTES = 100_000_000;
const MAX_RANK = 64;
const HEADER_LIMITS: JsonLimits = {
  code: "INVALID_CHECKPOINT",
  max_depth: 8,
  max_values: 1_000_000,
  unique_keys: true,
  numbers: /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/,
  // Sizes are written as 4; 4.0 and 4e0 stay strings, which are refused as sizes.
  number: (text) => (/[.eE]/.test(text) && Number.isInteger(Number(text)) ? text : Number(text)),
};

/** The format's names of the dtypes that a model may have. */
export const SAFETENSORS_NAMES: Readonly<Record<WeightDtype, string>> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int8: "I8",
};

/** One tensor of a safetensors file; `start` and `end` are bytes from the file's beginning. */
export interface SafetensorsEntry {
  key: string;
  /** The header's notation: "F32". */
  dtype: string;
  dims: number[];
  start: number;
  end: number;
}

/**
 * Reads and verifies a safetensors header: every length, offset, shape and key is checked before any data is read.
 * Format: https://github.com/huggingface/safetensors#format
 */
export async function read_safetensors_header(file: RandomAccessFile): Promise<SafetensorsEntry[]> {
  await refuse_lookalikes(file);
  const length = await read_header_length(file);
  const data_start = 8 + length;
  const header = parse_header(await file.read(8, length), file.name);
  const entries: SafetensorsEntry[] = [];
  for (const [key, value] of Object.entries(header)) {
    if (key === "__metadata__") check_metadata(value, file.name);
    else entries.push(parse_entry(key, value, data_start, file));
  }
  check_layout(entries, data_start, file);
  return entries;
}

async function read_header_length(file: RandomAccessFile): Promise<number> {
  if (file.size < 8) throw invalid(file.name, `has ${file.size} bytes, too few for a safetensors file`);
  const length = view_of(await file.read(0, 8)).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw invalid(
      file.name,
      `claims a header of ${length} bytes, more than ${MAX_HEADER_BYTES}: it isn't a safetensors file`,
    );
  }
  if (length > BigInt(file.size - 8)) {
    throw invalid(
      file.name,
      `claims a header of ${length} bytes but has ${file.size} bytes in total: it was cut off`,
    );
  }
  return Number(length);
}

function parse_header(bytes: Uint8Array, name: string): object {
  const text = decode_utf8(bytes);
  if (text === undefined) throw invalid(name, "has a header that isn't UTF-8");
  const header = parse_json(text, `The header of ${name}`, HEADER_LIMITS);
  if (!is_object(header)) throw invalid(name, "has a header that isn't a JSON object");
  // The format forbids a byte order mark, which decoding drops, and spaces.
  if (bytes[0] !== 0x7b)
    throw invalid(name, "has a header that doesn't begin with {; save it again with the safetensors library");
  return header;
}

function check_metadata(value: unknown, name: string): void {
  const sound =
    value === null || (is_object(value) && Object.values(value).every((item) => typeof item === "string"));
  if (!sound) throw invalid(name, "has a __metadata__ that isn't a map of strings");
}

function parse_entry(
  key: string,
  value: unknown,
  data_start: number,
  file: RandomAccessFile,
): SafetensorsEntry {
  const { dtype, shape, data_offsets } = (is_object(value) ? value : {}) as Record<string, unknown>;
  const bits = typeof dtype === "string" ? DTYPE_BITS.get(dtype) : undefined;
  if (bits === undefined) throw invalid_tensor(file, key, `has the unknown dtype ${show(dtype)}`);
  if (!is_sizes(shape) || shape.length > MAX_RANK) {
    throw invalid_tensor(file, key, `has the shape ${show(shape)}; sizes must be non-negative integers`);
  }
  if (!is_sizes(data_offsets) || data_offsets.length !== 2) {
    throw invalid_tensor(file, key, `has data_offsets ${show(data_offsets)} instead of two integers`);
  }
  const [start, end] = data_offsets as [number, number];
  const size = element_count(shape) * bits;
  if (!Number.isSafeInteger(size) || size !== (end - start) * 8) {
    throw invalid_tensor(
      file,
      key,
      `of dtype ${dtype} and shape ${show(shape)} doesn't fill bytes ${start} to ${end}`,
    );
  }
  return { key, dtype: dtype as string, dims: shape, start: data_start + start, end: data_start + end };
}

/** The tensors must cover the data exactly: no overlap, no gap, nothing beyond the file's end. */
function check_layout(entries: SafetensorsEntry[], data_start: number, file: RandomAccessFile): void {
  let end = data_start;
  for (const entry of entries.toSorted((a, b) => a.start - b.start || a.end - b.end)) {
    if (entry.start !== end) {
      const what = entry.start < end ? "overlaps another tensor" : "leaves a gap before it";
      throw invalid_tensor(
        file,
        entry.key,
        `${what}: it starts at byte ${entry.start}, where ${end} is expected`,
      );
    }
    end = entry.end;
  }
  if (end !== file.size) {
    const why =
      end > file.size
        ? "it was cut off while it was copied or downloaded; get it again"
        : "the remaining bytes belong to no tensor";
    throw invalid(file.name, `has ${file.size} bytes, but its header describes ${end}: ${why}`);
  }
}

/** The product of `dims`, or NaN if it isn't a safe integer. */
export function element_count(dims: readonly number[]): number {
  if (dims.includes(0)) return 0;
  let count = 1;
  for (const dim of dims) {
    count *= dim;
    if (!Number.isSafeInteger(count)) return Number.NaN;
  }
  return count;
}

function is_object(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function is_sizes(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.every((item) => Number.isSafeInteger(item) && !Object.is(item, -0) && item >= 0)
  );
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? "undefined").slice(0, 200);
}

function invalid(name: string, what: string): VitMsnError {
  return new VitMsnError("INVALID_CHECKPOINT", `${name} ${what}.`, { details: { file: name } });
}

function invalid_tensor(file: RandomAccessFile, key: string, what: string): VitMsnError {
  return new VitMsnError(
    "INVALID_CHECKPOINT",
    `${file.name}: the tensor ${JSON.stringify(key.slice(0, 200))} ${what}.`,
    {
      details: { file: file.name, key },
    },
  );
}
