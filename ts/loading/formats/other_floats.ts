import { view_of } from "../bytes.ts";

/** Reads bytes [start, start+length). */
type Read = (start: number, length: number) => Promise<Uint8Array>;

/** A floating-point dtype that no engine supports. */
interface OtherFloat {
  item_bytes: number;
  /** The `index`-th value. */
  value(view: DataView, index: number): number;
}

/** By safetensors' names. */
const OTHER_FLOATS: Readonly<Record<string, OtherFloat>> = {
  F64: { item_bytes: 8, value: (view, index) => view.getFloat64(8 * index, true) },
  F8_E4M3: float8(3, 7, (bits) => (bits & 0x7f) === 0x7f),
  F8_E4M3FNUZ: float8(3, 8, (bits) => bits === 0x80),
  F8_E5M2: float8(2, 15, (bits) => (bits & 0x7f) > 0x7c, 0x7c),
  F8_E5M2FNUZ: float8(2, 16, (bits) => bits === 0x80),
};

/** Eight bits: a sign, an exponent and a fraction; with infinity only if the format has a pattern for it. */
function float8(
  fraction_bits: number,
  bias: number,
  is_nan: (bits: number) => boolean,
  infinity?: number,
): OtherFloat {
  const steps = 2 ** fraction_bits;
  const values = Float32Array.from({ length: 256 }, (_, bits) => {
    const sign = bits < 0x80 ? 1 : -1;
    const exponent = (bits & 0x7f) >> fraction_bits;
    const fraction = (bits % steps) / steps;
    if (is_nan(bits)) return Number.NaN;
    if ((bits & 0x7f) === infinity) return sign * Number.POSITIVE_INFINITY;
    return sign * (exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias));
  });
  return { item_bytes: 1, value: (view, index) => values[view.getUint8(index)] as number };
}

/** Reads a tensor of such a dtype as float32; undefined for any other dtype. */
export function as_float32(dtype: string, read: Read): Read | undefined {
  const float = Object.hasOwn(OTHER_FLOATS, dtype) ? OTHER_FLOATS[dtype] : undefined;
  if (float === undefined) return undefined;
  const { item_bytes, value } = float;
  return async (start, length) => {
    const first = Math.floor(start / 4);
    const count = Math.ceil((start + length) / 4) - first;
    const view = view_of(await read(first * item_bytes, count * item_bytes));
    const values = new Uint8Array(Float32Array.from({ length: count }, (_, i) => value(view, i)).buffer);
    return values.subarray(start - 4 * first, start - 4 * first + length);
  };
}
