/** Numbers as people read them. */
export const percent = (share: number): string => {
  const value = 100 * share;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value < 0.1 ? "< 0.1" : value.toFixed(1)} %`;
};

export const milliseconds = (ms: number): string =>
  ms >= 10_000
    ? `${(ms / 1000).toFixed(0)} s`
    : ms >= 1000
      ? `${(ms / 1000).toFixed(1)} s`
      : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;

export const bytes = (count: number): string =>
  count >= 1e9
    ? `${(count / 1e9).toFixed(2)} GB`
    : count >= 1e6
      ? `${(count / 1e6).toFixed(1)} MB`
      : `${Math.ceil(count / 1e3)} kB`;

export const count_of = (count: number, one: string, many = `${one}s`): string =>
  `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export const short_number = (value: number): string =>
  value >= 1e9
    ? `${(value / 1e9).toFixed(1)} B`
    : value >= 1e6
      ? `${(value / 1e6).toFixed(1)} M`
      : `${Math.round(value / 1e3)} k`;

/** A duration. */
export const seconds = (count: number): string =>
  count >= 5400
    ? `${(count / 3600).toFixed(1)} h`
    : count >= 90
      ? `${Math.round(count / 60)} min`
      : `${Math.max(1, Math.round(count))} s`;
