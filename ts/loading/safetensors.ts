import { VitMsnError } from "../errors.ts";
import { decode_utf8, refuse_lookalikes, view_of } from "./bytes.ts";
import { parse_json } from "./json.ts";
import type { CheckpointDtype, RandomAccessFile } from "./types.ts";

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
const DTYPE_NAMES: Readonly<Record<CheckpointDtype, string>> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int8: "I8",
};
/** The safetensors library's own limit. */
const MAX_HEADER_BYTES = 100_000_000;
const MAX_RANK = 64;

/** One tensor of a safetensors file; `start` and `end` are bytes from the file's beginning. */
export interface SafetensorsEntry {
  key: string;
  /** As the header spells it: "F32". */
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
      `claims a header of ${length} bytes, more than ${MAX_HEADER_BYTES}: it is no safetensors file`,
    );
  }
  if (length > BigInt(file.size - 8)) {
    throw invalid(
      file.name,
      `claims a header of ${length} bytes but has ${file.size} bytes in all: it was cut off`,
    );
  }
  return Number(length);
}

function parse_header(bytes: Uint8Array, name: string): object {
  const text = decode_utf8(bytes);
  if (text === undefined) throw invalid(name, "has a header that isn't UTF-8");
  const limits = {
    code: "INVALID_CHECKPOINT",
    max_depth: 8,
    max_values: 1_000_000,
    unique_keys: true,
  } as const;
  const header = parse_json(text, `The header of ${name}`, limits);
  if (!is_object(header)) throw invalid(name, "has a header that isn't a JSON object");
  return header;
}

function check_metadata(value: unknown, name: string): void {
  const sound = is_object(value) && Object.values(value).every((item) => typeof item === "string");
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
    throw invalid_tensor(file, key, `has the shape ${show(shape)}; sizes must be whole and not negative`);
  }
  if (!is_sizes(data_offsets) || data_offsets.length !== 2) {
    throw invalid_tensor(file, key, `has data_offsets ${show(data_offsets)} instead of two whole numbers`);
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

/** The tensors must cover the data exactly: no overlap, no hole, nothing beyond the file's end. */
function check_layout(entries: SafetensorsEntry[], data_start: number, file: RandomAccessFile): void {
  let end = data_start;
  for (const entry of entries.toSorted((a, b) => a.start - b.start || a.end - b.end)) {
    if (entry.start !== end) {
      const what = entry.start < end ? "overlaps another tensor" : "leaves a hole before it";
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
        : "the rest belongs to no tensor";
    throw invalid(file.name, `has ${file.size} bytes where its header describes ${end}: ${why}`);
  }
}

/** The product of `dims`, or NaN where it isn't a safe integer. */
export function element_count(dims: readonly number[]): number {
  if (dims.includes(0)) return 0;
  let count = 1;
  for (const dim of dims) {
    count *= dim;
    if (!Number.isSafeInteger(count)) return Number.NaN;
  }
  return count;
}

/** One tensor to write. `bytes` holds `byte_length` bytes in all, row-major and little-endian, in pieces of any size. */
export interface TensorToWrite {
  key: string;
  dtype: CheckpointDtype;
  dims: readonly number[];
  byte_length: number;
  bytes: Uint8Array | AsyncIterable<Uint8Array>;
}

/** A tensor of a safetensors file from values in memory. */
export function float32_tensor(key: string, dims: readonly number[], values: Float32Array): TensorToWrite {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of values.entries()) view.setFloat32(4 * i, value, true);
  return { key, dtype: "float32", dims, byte_length: bytes.byteLength, bytes };
}

/**
 * Writes a safetensors file as a stream, so that saving needs no second copy of the weights. Tensors are ordered
 * as the safetensors library orders them: widest dtype first, then by key.
 */
export async function* write_safetensors(
  tensors: Iterable<TensorToWrite> | AsyncIterable<TensorToWrite>,
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): AsyncGenerator<Uint8Array, void, undefined> {
  const ordered: TensorToWrite[] = [];
  for await (const tensor of tensors) ordered.push(tensor);
  ordered.sort((a, b) => element_bytes(b) - element_bytes(a) || (a.key < b.key ? -1 : 1));
  yield make_header(ordered, metadata);
  for (const tensor of ordered) yield* tensor_bytes(tensor);
}

function make_header(
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const members = [`"__metadata__":${JSON.stringify(metadata)}`];
  const keys = new Set(["__metadata__"]);
  let start = 0;
  for (const tensor of tensors) {
    if (keys.has(tensor.key)) throw unwritable(tensor, "is given twice or has a reserved name");
    keys.add(tensor.key);
    if (element_count(tensor.dims) * element_bytes(tensor) !== tensor.byte_length) {
      throw unwritable(
        tensor,
        `of shape [${tensor.dims}] and dtype ${tensor.dtype} can't have ${tensor.byte_length} bytes`,
      );
    }
    const end = start + tensor.byte_length;
    const value = { dtype: DTYPE_NAMES[tensor.dtype], shape: tensor.dims, data_offsets: [start, end] };
    members.push(`${JSON.stringify(tensor.key)}:${JSON.stringify(value)}`);
    start = end;
  }
  const json = new TextEncoder().encode(`{${members.join(",")}}`);
  const length = Math.ceil(json.byteLength / 8) * 8;
  const header = new Uint8Array(8 + length).fill(0x20, 8);
  view_of(header).setBigUint64(0, BigInt(length), true);
  header.set(json, 8);
  return header;
}

async function* tensor_bytes(tensor: TensorToWrite): AsyncGenerator<Uint8Array, void, undefined> {
  const pieces = tensor.bytes instanceof Uint8Array ? [tensor.bytes] : tensor.bytes;
  let written = 0;
  for await (const piece of pieces) {
    written += piece.byteLength;
    if (written > tensor.byte_length) break;
    yield piece;
  }
  if (written !== tensor.byte_length)
    throw unwritable(tensor, `gave other than its ${tensor.byte_length} bytes`);
}

function element_bytes(tensor: TensorToWrite): number {
  return (DTYPE_BITS.get(DTYPE_NAMES[tensor.dtype]) as number) / 8;
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

function unwritable(tensor: TensorToWrite, what: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", `The tensor ${JSON.stringify(tensor.key)} ${what}.`, {
    details: { key: tensor.key },
  });
}
