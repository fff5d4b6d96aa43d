import { read_file } from "./files.ts";

/** A tensor of a fixture's expected.safetensors: bytes as numbers, half floats as floats. */
export interface Expected {
  shape: number[];
  data: ArrayLike<number>;
}

interface Entry {
  dtype: "U8" | "F16";
  shape: number[];
  data_offsets: [number, number];
}

/** The tensors of a safetensors fixture by name. */
export async function read_expected(path: string): Promise<Map<string, Expected>> {
  const bytes = await read_file(path);
  const start = 8 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start))) as Record<string, Entry>;
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  return new Map(
    entries.map(([name, { dtype, shape, data_offsets }]) => {
      const data = bytes.slice(start + data_offsets[0], start + data_offsets[1]);
      return [name, { shape, data: dtype === "U8" ? data : from_float16(new Uint16Array(data.buffer)) }];
    }),
  );
}

function from_float16(halves: Uint16Array): Float32Array {
  return Float32Array.from(halves, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
  });
}

export interface Difference {
  mean: number;
  max: number;
}

/** Mean and maximum of |a - b|. */
export function difference(a: ArrayLike<number>, b: ArrayLike<number>): Difference {
  if (a.length !== b.length) return { mean: Number.POSITIVE_INFINITY, max: Number.POSITIVE_INFINITY };
  let [sum, max] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    const distance = Math.abs((a[i] as number) - (b[i] as number));
    sum += distance;
    // As NaN is never larger, it would go unseen.
    max = distance <= max ? max : distance;
  }
  return { mean: sum / a.length, max };
}
