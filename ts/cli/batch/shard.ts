import { InvalidArgumentError } from "commander";

/** One of `count` equal parts of the work, by position: it has the pictures whose position leaves `index` over. */
export interface Shard {
  /** From 0 on. */
  index: number;
  count: number;
}

export const WHOLE: Shard = { index: 0, count: 1 };

/** "i/n", i from 0 to n − 1, as array jobs count. */
export function parse_shard(text: string): Shard {
  const [, index, count] = (/^(\d{1,9})\/(\d{1,9})$/.exec(text) ?? []).map(Number);
  if (index === undefined || count === undefined || index >= count)
    throw new InvalidArgumentError("expected i/n with i from 0 to n - 1, as 0/4.");
  return { index, count };
}
