import { InvalidArgumentError } from "commander";

/** One of `count` equal parts of the work: the images whose position modulo `count` is `index`. */
export interface Shard {
  /** Counted from 0. */
  index: number;
  count: number;
}

export const WHOLE: Shard = { index: 0, count: 1 };

/** "i/n" with i from 0 to n - 1, as array jobs count. */
export function parse_shard(text: string): Shard {
  const [, index, count] = (/^(\d{1,9})\/(\d{1,9})$/.exec(text) ?? []).map(Number);
  if (index === undefined || count === undefined || index >= count)
    throw new InvalidArgumentError("expected i/n with i from 0 to n - 1, such as 0/4.");
  return { index, count };
}
