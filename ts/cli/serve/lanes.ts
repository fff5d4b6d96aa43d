/** An image costs at least this, however small it is, in the same unit: decoding it takes a message and a thread. */
const MIN_COST = 1_000_000;
/** Bytes of memory from which an image is large: one megapixel. */
const LARGE = 8_000_000;

export const SMALL_LANE = 0;
export const LARGE_LANE = 1;
export type LaneNumber = typeof SMALL_LANE | typeof LARGE_LANE;

/** The lane of an image whose decoding takes this much memory. */
export function lane_of(bytes: number): LaneNumber {
  return bytes >= LARGE ? LARGE_LANE : SMALL_LANE;
}

interface Waiting {
  bytes: number;
  start(): void;
}

interface Lane {
  waiting: Waiting[];
  running: number;
  /** The cost of all images started so far. The lane with less of it is next. */
  served: number;
}

export interface LanesOptions {
  /** The number of images that are prepared at a time. */
  workers: number;
  /** Bytes of memory for images that are prepared or wait for their batch. */
  memory: number;
}

/** What holds an image's memory: first all that decoding takes, then what is left of it. */
export interface Place {
  /** Ends the preparation: the next image may start. @param bytes what the prepared image takes. */
  prepared(bytes: number): void;
  /** Releases everything. */
  leave(): void;
}

/**
 * Which images are prepared next. Small and large ones have a lane each, and both lanes get the same share of the work while
 * both have some; within a lane, the order is that of arrival. Large images never take the last worker.
 */
export class Lanes {
  readonly #workers: number;
  readonly #memory: number;
  #free: number;
  readonly #lanes: readonly [Lane, Lane] = [new_lane(), new_lane()];

  /** @param options at least two workers. */
  constructor({ workers, memory }: LanesOptions) {
    this.#workers = Math.max(2, workers);
    this.#memory = memory;
    this.#free = memory;
  }

  /**
   * Resolves when an image of these bytes may be prepared. One that exceeds the memory takes all of it.
   * @throws the signal's reason if it fires first.
   */
  async enter(bytes: number, signal: AbortSignal): Promise<Place> {
    const number = lane_of(bytes);
    const taken = Math.min(bytes, this.#memory);
    await this.#turn(this.#lanes[number], taken, signal);
    return this.#place(this.#lanes[number], taken);
  }

  #turn(lane: Lane, bytes: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const start = () => {
        signal.removeEventListener("abort", give_up);
        resolve();
      };
      const waiting = { bytes, start };
      const give_up = () => {
        lane.waiting.splice(lane.waiting.indexOf(waiting), 1);
        reject(signal.reason);
        this.#start_next();
      };
      signal.addEventListener("abort", give_up, { once: true });
      this.#settle_claims(lane);
      lane.waiting.push(waiting);
      this.#start_next();
    });
  }

  #place(lane: Lane, taken: number): Place {
    let held = taken;
    let is_preparing = true;
    const shrink = (bytes: number) => {
      this.#free += held - bytes;
      held = bytes;
      if (is_preparing) lane.running--;
      is_preparing = false;
      this.#start_next();
    };
    return { prepared: (bytes) => shrink(Math.min(bytes, held)), leave: () => shrink(0) };
  }

  /** A lane that was idle has no claims from that time, and none has any once all were idle. */
  #settle_claims(lane: Lane): void {
    const busy = this.#lanes.filter((each) => !is_idle(each));
    if (busy.length === 0) for (const each of this.#lanes) each.served = 0;
    else if (is_idle(lane)) lane.served = Math.max(lane.served, ...busy.map(({ served }) => served));
  }

  #start_next(): void {
    for (;;) {
      const ready = this.#lanes.filter((lane) => this.#can_start(lane));
      const [first, second] = ready;
      if (first === undefined) return;
      const lane = second !== undefined && second.served < first.served ? second : first;
      const next = lane.waiting.shift() as Waiting;
      lane.running++;
      lane.served += Math.max(next.bytes, MIN_COST);
      this.#free -= next.bytes;
      next.start();
    }
  }

  #can_start(lane: Lane): boolean {
    const [small, large] = this.#lanes;
    const [next] = lane.waiting;
    if (next === undefined || next.bytes > this.#free) return false;
    const is_worker_free = small.running + large.running < this.#workers;
    return is_worker_free && (lane === small || large.running < this.#workers - 1);
  }
}

function new_lane(): Lane {
  return { waiting: [], running: 0, served: 0 };
}

function is_idle({ waiting, running }: Lane): boolean {
  return waiting.length === 0 && running === 0;
}
