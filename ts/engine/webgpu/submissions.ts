import type { AdapterInfo } from "../engine_info.ts";

/**
 * Max time in ms of one submission, unless the device was lost. Windows resets a GPU that is busy for two seconds, and a
 * page can't be drawn in the meantime.
 */
const MAX_MS = 100;
/** After losses of the device. */
const MIN_MS = 10;

/** The first limit in floating-point operations: MAX_MS of a weak phone's GPU at 50 GFLOP/s, and of software at 10. */
const FIRST = { gpu: 5e9, software: 1e9 } as const;
const [MIN_WORK, MAX_WORK] = [1e7, 1e13] as const;

/** Less than this share of the limit says little about the device's speed: most of its time may be latency. */
const TELLING_SHARE = 1 / 8;

const MAX_FACTOR = 4;

/** By adapter, for all engines on it and for those opened after a loss. */
const limits = new Map<string, SubmissionLimit>();

/** How much work one submission may hold on an adapter, as measured. */
export class SubmissionLimit {
  #max_ms = MAX_MS;
  #work: number;
  /** Sums over the latest measurements, older ones with less weight: a device may report two submissions at once. */
  #recent = { work: 0, ms: 0 };

  constructor(is_software: boolean) {
    this.#work = is_software ? FIRST.software : FIRST.gpu;
  }

  /** The limit of this adapter. */
  static of(adapter: AdapterInfo): SubmissionLimit {
    const key = JSON.stringify(adapter);
    const limit = limits.get(key) ?? new SubmissionLimit(adapter.is_software);
    limits.set(key, limit);
    return limit;
  }

  /** In floating-point operations. */
  get work(): number {
    return this.#work;
  }

  /** The device took `ms` for `work`. One measurement changes the limit by a small factor: it may be an outlier. */
  measured(work: number, ms: number): void {
    if (work === 0 || (ms < this.#max_ms && work < TELLING_SHARE * this.#work)) return;
    const recent = this.#recent;
    recent.work = recent.work / 2 + work;
    recent.ms = recent.ms / 2 + ms;
    const fitting = (recent.work / Math.max(recent.ms, 0.1)) * this.#max_ms;
    this.#set(Math.min(MAX_FACTOR * this.#work, Math.max(this.#work / MAX_FACTOR, fitting)));
  }

  /** The device was lost, perhaps because it was busy for too long. */
  device_lost(): void {
    this.#max_ms = Math.max(MIN_MS, this.#max_ms / 2);
    this.#set(this.#work / 2);
  }

  #set(work: number): void {
    this.#work = Math.min(MAX_WORK, Math.max(MIN_WORK, work));
  }
}

/** Times the submissions of one engine. */
export class SubmissionClock {
  readonly #limit: SubmissionLimit;
  #submitted = 0;
  /** When the device had finished what was submitted before. */
  #finished = 0;

  constructor(limit: SubmissionLimit) {
    this.#limit = limit;
  }

  /**
   * Times what was submitted since the last call.
   * @param submitted all the work submitted so far.
   * @param finished resolves when the device has finished it.
   */
  async time(submitted: number, finished: Promise<unknown>): Promise<void> {
    const work = submitted - this.#submitted;
    this.#submitted = submitted;
    const start = performance.now();
    await finished;
    const now = performance.now();
    this.#limit.measured(work, now - Math.max(start, this.#finished));
    this.#finished = now;
  }

  /** Excludes what was submitted so far from the times. */
  skip(submitted: number): void {
    this.#submitted = submitted;
  }

  /** Whether nothing was submitted since the last call of `time`. */
  is_idle(submitted: number): boolean {
    return submitted === this.#submitted;
  }
}

/** Max ms between two nudges. */
const MAX_PAUSE_MS = 16;

/**
 * Awaits answers of a device. Firefox looks for finished work when something is submitted, and otherwise ten times a
 * second: so empty submissions are made while an answer is awaited.
 */
export class Nudger {
  readonly #queue: GPUQueue;
  #waiting = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(queue: GPUQueue) {
    this.#queue = queue;
  }

  async until<T>(answer: Promise<T>): Promise<T> {
    this.#waiting += 1;
    this.#nudge_in(1);
    try {
      return await answer;
    } finally {
      this.#waiting -= 1;
      if (this.#waiting === 0) clearTimeout(this.#timer);
    }
  }

  #nudge_in(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#queue.submit([]);
      this.#nudge_in(Math.min(MAX_PAUSE_MS, 2 * ms));
    }, ms);
  }
}
