import { ascii, concat, uint64 } from "./torch_archive.ts";

/** A tensor as a file of weights holds it. */
export interface RawTensor {
  dtype: string;
  dims: readonly number[];
  bytes: Uint8Array;
}

/** A safetensors file of any dtypes. */
export function safetensors_of(tensors: ReadonlyMap<string, RawTensor>): Uint8Array {
  let end = 0;
  const header = [...tensors].map(([key, { dtype, dims, bytes }]) => {
    const start = end;
    end += bytes.byteLength;
    return [key, { dtype, shape: dims, data_offsets: [start, end] }];
  });
  const text = ascii(JSON.stringify(Object.fromEntries(header)));
  return concat(uint64(text.byteLength), text, ...[...tensors.values()].map(({ bytes }) => bytes));
}

/** The tensors of a safetensors file. */
export function raw_tensors(file: Uint8Array): Map<string, RawTensor> {
  const view = new DataView(file.buffer, file.byteOffset);
  const data = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, data)));
  delete header.__metadata__;
  return new Map(
    Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(header).map(
      ([
        key,
        {
          dtype,
          shape,
          data_offsets: [start, end],
        },
      ]) => [key, { dtype, dims: shape, bytes: file.slice(data + start, data + end) }],
    ),
  );
}

/** A float32 tensor's values. */
export function values_of({ bytes }: RawTensor): Float32Array {
  return new Float32Array(bytes.slice().buffer);
}

/** The same tensor as float64. */
export function as_float64(tensor: RawTensor): RawTensor {
  return { ...tensor, dtype: "F64", bytes: new Uint8Array(Float64Array.from(values_of(tensor)).buffer) };
}
