import {
  allocate_int32,
  coefficients,
  FILTERS,
  nearest_positions,
  PRECISION_BITS,
  RESAMPLE,
  type ResampleCode,
} from "./resize.ts";

/**
 * One axis of resize_pixels as a table for kernels: for each result the first source pixel, how many there are, and their
 * weights in fixed point with 22 fractional bits, `stride` numbers in all.
 */
export function resampling(
  source_size: number,
  size: number,
  resample: ResampleCode,
): { table: Int32Array; stride: number } {
  if (source_size === size) return picked(Int32Array.from({ length: size }, (_, i) => i));
  if (resample === RESAMPLE.nearest) return picked(nearest_positions(source_size, size));
  const plan = coefficients(source_size, size, FILTERS[resample]);
  const stride = plan.stride + 2;
  const table = allocate_int32(size * stride);
  for (let i = 0; i < size; i++) {
    table[i * stride] = plan.first[i] as number;
    table[i * stride + 1] = plan.count[i] as number;
    table.set(plan.weights.subarray(i * plan.stride, (i + 1) * plan.stride), i * stride + 2);
  }
  return { table, stride };
}

/** Each result is one source pixel. */
function picked(positions: Int32Array): { table: Int32Array; stride: number } {
  const table = new Int32Array(3 * positions.length);
  for (const [i, position] of positions.entries()) table.set([position, 1, 1 << PRECISION_BITS], 3 * i);
  return { table, stride: 3 };
}
