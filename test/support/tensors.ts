import { read_file } from "./files.ts";

/** A tensor of a fixture; half floats are widened. */
export interface FixtureTensor {
  dtype: keyof typeof DECODERS;
  dims: number[];
  data: Float32Array | Uint8Array | Int32Array | BigInt64Array;
}

const DECODERS = {
  F32: (bytes: Uint8Array<ArrayBuffer>) => new Float32Array(bytes.buffer),
  F16: (bytes: Uint8Array<ArrayBuffer>) => Float32Array.from(new Uint16Array(bytes.buffer), from_float16),
  I32: (bytes: Uint8Array<ArrayBuffer>) => new Int32Array(bytes.buffer),
  I64: (bytes: Uint8Array<ArrayBuffer>) => new BigInt64Array(bytes.buffer),
  U8: (bytes: Uint8Array<ArrayBuffer>) => bytes,
};

/** The tensors of a safetensors fixture by name: a plain reader, so that tests don't trust the one they test. */
export async function read_tensors(path: string): Promise<Map<string, FixtureTensor>> {
  return parse_tensors(await read_file(path));
}

/** The same, of a file that is in memory. */
export function parse_tensors(bytes: Uint8Array): Map<string, FixtureTensor> {
  const start = 8 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const names = Object.keys(header).filter((name) => name !== "__metadata__");
  return new Map(
    names.map((name) => {
      const { dtype, shape, data_offsets } = header[name] as {
        dtype: FixtureTensor["dtype"];
        shape: number[];
        data_offsets: [number, number];
      };
      const data = DECODERS[dtype](bytes.slice(start + data_offsets[0], start + data_offsets[1]));
      return [name, { dtype, dims: shape, data }];
    }),
  );
}

function from_float16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** The largest |a - b|; NaN or another length is infinitely far. */
export function max_difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let max = 0;
  for (let i = 0; i < a.length; i++) {
    const distance = Math.abs((a[i] as number) - (b[i] as number));
    if (!(distance <= max)) max = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : distance;
  }
  return max;
}
