import { BYTES_PER_ELEMENT, type WeightDtype } from "../../dtypes.ts";
import { VitMsnError } from "../../errors.ts";
import { is_a } from "../../is_a.ts";
import { view_of } from "../bytes.ts";
import { element_count, SAFETENSORS_NAMES } from "./safetensors.ts";

/**
 * One tensor to write. `bytes` yields `byte_length` bytes in total, row-major and little-endian, in pieces of any size.
 */
export interface TensorToWrite {
  key: string;
  dtype: WeightDtype;
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
 * Writes a safetensors file as a stream, so that saving needs no second copy of the weights. Tensors are ordered as by
 * the safetensors library: widest dtype first, then by key.
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
    const value = { dtype: SAFETENSORS_NAMES[tensor.dtype], shape: tensor.dims, data_offsets: [start, end] };
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
  const pieces = is_a(tensor.bytes, "Uint8Array") ? [tensor.bytes] : tensor.bytes;
  let written = 0;
  for await (const piece of pieces) {
    written += piece.byteLength;
    if (written > tensor.byte_length) break;
    yield piece;
  }
  if (written !== tensor.byte_length)
    throw unwritable(tensor, `didn't provide exactly its ${tensor.byte_length} bytes`);
}

function element_bytes(tensor: TensorToWrite): number {
  return BYTES_PER_ELEMENT[tensor.dtype];
}

function unwritable(tensor: TensorToWrite, what: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", `The tensor ${JSON.stringify(tensor.key)} ${what}.`, {
    details: { key: tensor.key },
  });
}
