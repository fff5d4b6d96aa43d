import { setTimeout as sleep } from "node:timers/promises";

/** What is timed; a promise is awaited. */
export type Body = () => unknown;

/** Milliseconds since some moment. */
export type Clock = () => number;

const wall_clock: Clock = () => performance.now();

/** This process's processor time in milliseconds, all threads together: what other processes do isn't counted. */
export const processor_clock: Clock = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};

/** Milliseconds of one call. */
export async function time(body: Body, clock: Clock = wall_clock): Promise<number> {
  const start = clock();
  const result = body();
  if (result instanceof Promise) await result;
  return clock() - start;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low, high] = [sorted[(sorted.length - 1) >> 1] as number, sorted[middle] as number];
  return (low + high) / 2;
}

export interface RepeatOptions {
  /** Measure at least this long, in milliseconds. */
  min_ms: number;
  min_rounds: number;
}

/** Median milliseconds of a call, after a warm-up of the same length, in which V8 replaces its baseline code of WebAssembly. */
export async function repeat(body: Body, { min_ms, min_rounds }: RepeatOptions): Promise<number> {
  await run_for(body, min_ms, 2);
  return median(await run_for(body, min_ms, min_rounds));
}

/** Least milliseconds of a call, for what a machine can do at most; after a warm-up as in `repeat`. */
export async function fastest(body: Body, { min_ms, min_rounds }: RepeatOptions): Promise<number> {
  await run_for(body, min_ms, 2);
  return Math.min(...(await run_for(body, min_ms, min_rounds)));
}

async function run_for(body: Body, min_ms: number, min_rounds: number): Promise<number[]> {
  const times: number[] = [];
  for (let total = 0; total < min_ms || times.length < min_rounds; ) {
    const ms = await time(body);
    times.push(ms);
    total += ms;
  }
  return times;
}

/** How long a runtime's threads may look for more work when its own is done, and take the other's processor. */
const SETTLING_MS = 200;

/**
 * Times two bodies in turn, so that a machine that slows down or speeds up does it to both; which goes first alternates
 * too. Two rounds of warming up aren't counted.
 */
export async function alternate(
  a: Body,
  b: Body,
  rounds: number,
  clock: Clock = wall_clock,
): Promise<{ a: number[]; b: number[] }> {
  const times = { a: [] as number[], b: [] as number[] };
  for (let round = -2; round < rounds; round++) {
    const order = round % 2 === 0 ? (["a", "b"] as const) : (["b", "a"] as const);
    for (const name of order) {
      await sleep(SETTLING_MS);
      const ms = await time(name === "a" ? a : b, clock);
      if (round >= 0) times[name].push(ms);
    }
  }
  return times;
}

/**
 * As `alternate`, for about `min_ms` in all. The first round is the warm-up, unless it alone takes that long: then it is
 * the result.
 */
export async function alternate_for(
  a: Body,
  b: Body,
  { min_ms, max_rounds }: { min_ms: number; max_rounds: number },
): Promise<{ a: number[]; b: number[] }> {
  const first = { a: [await time(a)], b: [await time(b)] };
  const round_ms = (first.a[0] as number) + (first.b[0] as number);
  if (round_ms >= min_ms) return first;
  const times = { a: [] as number[], b: [] as number[] };
  const rounds = Math.min(max_rounds, Math.ceil(min_ms / round_ms));
  for (let round = 0; round < rounds; round++) {
    const order = round % 2 === 0 ? (["b", "a"] as const) : (["a", "b"] as const);
    for (const name of order) times[name].push(await time(name === "a" ? a : b));
  }
  return times;
}
