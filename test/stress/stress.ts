import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { draw_case } from "./cases.ts";
import { run_case } from "./run_case.ts";

export interface StressOptions {
  seed: number;
  /** How long new cases are started, or how many of them. */
  until: { ms: number } | { cases: number };
  /** Cases that run at once. */
  lanes: number;
  /** Called about every ten seconds. */
  report?: (progress: StressReport) => void;
}

export interface StressReport {
  cases: number;
  forwards: number;
  seconds: number;
  /** Resident bytes now. */
  resident: number;
}

/** A case that takes longer hangs: the largest take a second on an idle machine. */
const HANG_MS = 300_000;
const REPORT_MS = 10_000;
/** Samples of the resident memory, over the whole run. */
const SAMPLES = 40;
/** Bytes by which its median may grow from the second quarter, when all is warm, to the last; a case may hold 200 MB. */
const GROWTH = 100e6;

/**
 * Runs random cases, several at once.
 * @throws Error that names the seed of the case, on a wrong answer, a leak, a hang or an unexpected error.
 */
export async function stress({ seed, until, lanes, report }: StressOptions): Promise<StressReport> {
  const start = performance.now();
  const elapsed = () => performance.now() - start;
  /** The share of the run that is done. */
  const progress = () => ("ms" in until ? elapsed() / until.ms : (next - seed) / until.cases);
  const total: StressReport = { cases: 0, forwards: 0, seconds: 0, resident: 0 };
  const resident: number[] = [];
  let next = seed;
  let reported = 0;
  const lane = async () => {
    while (progress() < 1) {
      const forwards = await run_seed(next++ >>> 0);
      total.forwards += forwards;
      total.cases += 1;
      total.seconds = Math.round(elapsed() / 1000);
      if (progress() >= resident.length / SAMPLES) resident.push(measure_resident());
      total.resident = resident.at(-1) as number;
      if (elapsed() - reported > REPORT_MS) {
        reported = elapsed();
        report?.(total);
      }
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  check_growth(resident, seed);
  return total;
}

setFlagsFromString("--expose-gc");
const collect_garbage = runInNewContext("gc") as () => void;

/** After a garbage collection: the collector's pace isn't what is measured. */
function measure_resident(): number {
  collect_garbage();
  return process.memoryUsage().rss;
}

async function run_seed(seed: number): Promise<number> {
  const stress_case = draw_case(seed);
  try {
    await in_time(run_case(stress_case));
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`Case ${seed}: ${message}\n${JSON.stringify(stress_case)}`, { cause });
  }
  return stress_case.forwards.length;
}

async function in_time(work: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs: no end after ${HANG_MS / 1000} s`)), HANG_MS);
  });
  try {
    await Promise.race([work, hang]);
  } finally {
    clearTimeout(timer);
  }
}

function check_growth(resident: readonly number[], seed: number): void {
  const quarter = resident.length >> 2;
  const [warm, last] = [resident.slice(quarter, 2 * quarter), resident.slice(-quarter)].map(median) as [
    number,
    number,
  ];
  if (last - warm > GROWTH) {
    const [from, to] = [warm, last].map((bytes) => Math.round(bytes / 1e6));
    throw new Error(`Seed ${seed}: resident memory grew from ${from} MB to ${to} MB.`);
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] as number;
}
