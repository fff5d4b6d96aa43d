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
    // NaN is never larger, so it would be missed.
    max = distance <= max ? max : distance;
  }
  return { mean: sum / a.length, max };
}
