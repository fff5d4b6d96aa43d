import { mix } from "../model/random.ts";

/**
 * Seeded random numbers for shuffling and augmentation. The stream depends on its keys alone, for example
 * (seed, epoch, image), so a resumed training run draws the same numbers without storing any state.
 */
export class Random {
  readonly #key: number;
  #drawn = 0;

  /** @param keys integers. */
  constructor(...keys: readonly number[]) {
    this.#key = keys.reduce((key, value) => mix(key ^ mix(value >>> 0)), 0x9e3779b9);
  }

  /** 32 random bits. */
  bits(): number {
    return mix(this.#key ^ mix(this.#drawn++));
  }

  /** A number from [low, high), by default from [0, 1). */
  uniform(low = 0, high = 1): number {
    return low + (high - low) * (this.bits() / 4294967296);
  }

  /** An integer from [0, end). */
  integer(end: number): number {
    return Math.floor(this.uniform(0, end));
  }
}

/** 0 to length − 1 in random order, by the Fisher–Yates shuffle. */
export function permutation(length: number, random: Random): Uint32Array {
  const order = Uint32Array.from({ length }, (_, i) => i);
  for (let i = length - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}
