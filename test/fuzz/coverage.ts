/** The counters that istanbul's instrumentation keeps for one file. */
interface FileCoverage {
  s: Record<string, number>;
  f: Record<string, number>;
  b: Record<string, number[]>;
}

/**
 * Which statements, functions and branches inputs have reached, and about how often: counts are put into AFL's buckets
 * (1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128 and more), so that a loop that runs longer than ever counts as new, too.
 */
export class Coverage {
  readonly #counters: (Record<string, number> | number[])[];
  readonly #seen = new Map<object, Map<string, number>>();

  /** @param instrumented the `__coverage__` object of the instrumented code */
  constructor(instrumented: Record<string, FileCoverage>) {
    this.#counters = Object.values(instrumented).flatMap(({ s, f, b }) => [s, f, ...Object.values(b)]);
    for (const counter of this.#counters) this.#seen.set(counter, new Map());
  }

  /** Forgets the counts of the last input. */
  reset(): void {
    for (const counter of this.#counters) for (const key in counter) counter[key as never] = 0 as never;
  }

  /** Whether the last input reached a bucket that none before it did; it is remembered. */
  is_new(): boolean {
    let found = false;
    for (const counter of this.#counters) {
      const seen = this.#seen.get(counter) as Map<string, number>;
      for (const key in counter) {
        const bit = bucket(counter[key as never]);
        const before = seen.get(key) ?? 0;
        if ((bit & ~before) === 0) continue;
        seen.set(key, before | bit);
        found = true;
      }
    }
    return found;
  }

  /** How many statements, functions and branches were reached by any input. */
  get reached(): number {
    let sum = 0;
    for (const seen of this.#seen.values()) sum += seen.size;
    return sum;
  }
}

function bucket(count: number): number {
  if (count === 0) return 0;
  if (count < 4) return 1 << (count - 1);
  if (count < 8) return 8;
  if (count < 16) return 16;
  if (count < 32) return 32;
  return count < 128 ? 64 : 128;
}
