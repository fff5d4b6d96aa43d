import { concat_bytes } from "../../ts/files/concat_bytes.ts";
import { MAX_INPUT_BYTES } from "./limits.mjs";

/** The random numbers of mutations: a small generator with a seed, so that every run can be replayed. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer from 0 to `bound` - 1. Source: the mulberry32 generator. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) % bound;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

/** Values at which lengths, counts and offsets are mishandled. */
const BOUNDARIES = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

type Mutator = (bytes: Uint8Array, random: Random, others: readonly Uint8Array[]) => Uint8Array;

/** The mutations of AFL's havoc stage: https://lcamtuf.coredump.cx/afl/technical_details.txt */
const MUTATORS: readonly Mutator[] = [
  function flip_bit(bytes, random) {
    const at = random.below(bytes.length);
    bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
    return bytes;
  },
  function set_byte(bytes, random) {
    bytes[random.below(bytes.length)] = random.below(256);
    return bytes;
  },
  function add_to_byte(bytes, random) {
    const at = random.below(bytes.length);
    bytes[at] = (bytes[at] as number) + random.below(35) - 17;
    return bytes;
  },
  function set_boundary(bytes, random) {
    const value = random.pick(BOUNDARIES);
    const width = random.pick([1, 2, 4]);
    const big_endian = random.below(2) === 1;
    const at = random.below(bytes.length);
    for (let i = 0; i < width && at + i < bytes.length; i++) {
      const shift = 8 * (big_endian ? width - 1 - i : i);
      bytes[at + i] = (value >>> shift) & 0xff;
    }
    return bytes;
  },
  function delete_range(bytes, random) {
    const { from, to } = range(bytes, random);
    return concat_bytes([bytes.subarray(0, from), bytes.subarray(to)]);
  },
  function cut(bytes, random) {
    return bytes.slice(0, 1 + random.below(bytes.length));
  },
  function duplicate_range(bytes, random) {
    const { from, to } = range(bytes, random);
    const at = random.below(bytes.length + 1);
    return concat_bytes([bytes.subarray(0, at), bytes.subarray(from, to), bytes.subarray(at)]);
  },
  function overwrite_range(bytes, random) {
    const { from, to } = range(bytes, random);
    bytes.copyWithin(random.below(bytes.length), from, to);
    return bytes;
  },
  function insert_noise(bytes, random) {
    const at = random.below(bytes.length + 1);
    const noise = Uint8Array.from({ length: 1 + random.below(16) }, () => random.below(256));
    return concat_bytes([bytes.subarray(0, at), noise, bytes.subarray(at)]);
  },
  function splice(bytes, random, others) {
    const other = random.pick(others);
    const { from, to } = range(other, random);
    const at = random.below(bytes.length + 1);
    return concat_bytes([bytes.subarray(0, at), other.subarray(from, to), bytes.subarray(at)]);
  },
  function cross_over(bytes, random, others) {
    const other = random.pick(others);
    return concat_bytes([
      bytes.subarray(0, random.below(bytes.length + 1)),
      other.subarray(random.below(other.length + 1)),
    ]);
  },
];

/** Some mutations of an input, one after the other; a token of the format's dictionary is inserted now and then. */
export function mutate(
  input: Uint8Array,
  random: Random,
  corpus: readonly Uint8Array[],
  dictionary: readonly Uint8Array[],
): Uint8Array {
  let bytes: Uint8Array = input.slice();
  for (let left = 1 << random.below(6); left > 0; left--) {
    if (bytes.length === 0) bytes = Uint8Array.of(random.below(256));
    const insert_token = dictionary.length > 0 && random.below(4) === 0;
    bytes = insert_token
      ? with_token(bytes, random, dictionary)
      : random.pick(MUTATORS)(bytes, random, corpus);
  }
  return bytes.subarray(0, MAX_INPUT_BYTES);
}

function with_token(bytes: Uint8Array, random: Random, dictionary: readonly Uint8Array[]): Uint8Array {
  const token = random.pick(dictionary);
  const at = random.below(bytes.length + 1);
  const replaced = random.below(2) === 0 ? token.length : 0;
  return concat_bytes([bytes.subarray(0, at), token, bytes.subarray(at + replaced)]);
}

function range(bytes: Uint8Array, random: Random): { from: number; to: number } {
  const from = random.below(bytes.length + 1);
  return { from, to: Math.min(bytes.length, from + 1 + random.below(random.pick([4, 32, 512]))) };
}
