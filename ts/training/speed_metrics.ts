/**
 * The duration of a part of the training and its rates, by transformers' names. As there, a duration of 0 has no rates: a
 * browser's clock may round by up to 100 ms.
 */
export function speed_metrics(
  prefix: string,
  seconds: number,
  samples: number,
  steps: number,
): Record<string, number> {
  return {
    [`${prefix}_runtime`]: seconds,
    ...(seconds > 0 && {
      [`${prefix}_samples_per_second`]: samples / seconds,
      [`${prefix}_steps_per_second`]: steps / seconds,
    }),
  };
}
