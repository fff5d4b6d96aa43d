export interface PrefetchOptions<R> {
  /** The largest number of results that are in progress or waiting. */
  limit: number;
  /** The largest number of items that are worked on at a time. */
  max_running: number;
  /** The memory that a result takes; no new work starts while waiting results take `max_weight`. */
  weight(result: R): number;
  max_weight: number;
}

/**
 * Runs `work` ahead of the consumer, several items at a time, and yields the results in the order of the items.
 * An error in the items or the work is thrown at its item's position and ends the iteration.
 */
export async function* prefetch<T, R>(
  items: AsyncIterable<T>,
  work: (item: T) => Promise<R>,
  options: PrefetchOptions<R>,
): AsyncGenerator<R> {
  const queue = new Ahead(items, work, options);
  const pump = queue.fill();
  try {
    for (let next = await queue.next(); next !== undefined; next = await queue.next()) yield next.result;
  } finally {
    queue.close();
    await pump;
  }
}

class Ahead<T, R> {
  readonly #iterator: AsyncIterator<T>;
  readonly #work: (item: T) => Promise<R>;
  readonly #options: PrefetchOptions<R>;
  readonly #results: Promise<R>[] = [];
  #weight = 0;
  #running = 0;
  #ended = false;
  #closed = false;
  #wake_reader = () => {};
  #wake_pump = () => {};

  constructor(items: AsyncIterable<T>, work: (item: T) => Promise<R>, options: PrefetchOptions<R>) {
    this.#iterator = items[Symbol.asyncIterator]();
    this.#work = work;
    this.#options = options;
  }

  async fill(): Promise<void> {
    try {
      while (await this.#has_room()) {
        const { done, value } = await this.#iterator.next();
        if (done) break;
        this.#push(this.#start(value));
      }
    } catch (error) {
      this.#push(Promise.reject(error));
    } finally {
      this.#ended = true;
      this.#wake_reader();
      await this.#iterator.return?.();
    }
  }

  /** The oldest result, which counts against the limits until it is available; undefined after the last. */
  async next(): Promise<{ result: R } | undefined> {
    while (this.#results.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake_reader = resolve;
      });
    }
    const [oldest] = this.#results;
    return oldest?.then((result) => {
      this.#results.shift();
      this.#weight -= this.#options.weight(result);
      this.#wake_pump();
      return { result };
    });
  }

  close(): void {
    this.#closed = true;
    this.#wake_pump();
  }

  async #has_room(): Promise<boolean> {
    const { limit, max_running, max_weight } = this.#options;
    while (
      !this.#closed &&
      (this.#results.length >= limit ||
        this.#running >= max_running ||
        (this.#weight >= max_weight && this.#results.length > 0))
    ) {
      await new Promise<void>((resolve) => {
        this.#wake_pump = resolve;
      });
    }
    return !this.#closed;
  }

  async #start(item: T): Promise<R> {
    this.#running++;
    try {
      const result = await this.#work(item);
      this.#weight += this.#options.weight(result);
      return result;
    } finally {
      this.#running--;
      this.#wake_pump();
    }
  }

  #push(result: Promise<R>): void {
    // The consumer gets the error at its item's position.
    result.catch(() => {});
    this.#results.push(result);
    this.#wake_reader();
  }
}
