import { invalid_argument } from "../errors.ts";

/** A vector: a plain or a typed array of numbers. */
export type Vector = ArrayLike<number>;

/** The dot product of two vectors. @throws VitMsnError INVALID_ARGUMENT if their lengths differ. */
export function dot(a: Vector, b: Vector): number {
  if (a.length !== b.length)
    throw invalid_argument(`Vectors of ${a.length} and ${b.length} numbers can't be multiplied.`);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

const length_of = (a: Vector): number => Math.sqrt(dot(a, a));

/**
 * The cosine of the angle between two vectors, from -1 to 1, as transformers.js' cos_sim; 0 if one has length 0.
 * @throws VitMsnError INVALID_ARGUMENT if their lengths differ.
 */
export const cos_sim = (a: Vector, b: Vector): number =>
  dot(a, b) / (length_of(a) * length_of(b) || Infinity);

/** The vector scaled to length 1; zeros stay zeros. */
export function normalize(a: Vector): Float32Array {
  const length = length_of(a) || 1;
  return Float32Array.from(a, (value) => value / length);
}
