/** Lets up to `count` tasks run at a time; the others wait in order. */
export class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Runs `body` once a slot is free. @param signal ends the wait. */
  async use<T>(signal: AbortSignal, body: () => Promise<T>): Promise<T> {
    await this.#take(signal);
    try {
      return await body();
    } finally {
      this.#give();
    }
  }

  #take(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      if (this.#free > 0) {
        this.#free--;
        return resolve();
      }
      const enter = () => {
        signal.removeEventListener("abort", give_up);
        resolve();
      };
      const give_up = () => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1);
        reject(signal.reason);
      };
      signal.addEventListener("abort", give_up, { once: true });
      this.#waiting.push(enter);
    });
  }

  #give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free++;
    else next();
  }
}
