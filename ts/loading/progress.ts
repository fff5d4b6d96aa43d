import type { LoadOptions } from "./types.ts";

const INTERVAL_MS = 100;

/** Reports one file's progress to a callback, no more often than a person can perceive. */
export class Progress {
  #last = 0;
  readonly #callback: LoadOptions["progress_callback"];
  readonly #name: string;
  readonly #file: string;

  constructor(callback: LoadOptions["progress_callback"], name: string, file: string) {
    this.#callback = callback;
    this.#name = name;
    this.#file = file;
  }

  initiate(): void {
    this.#callback?.({ status: "initiate", name: this.#name, file: this.#file });
  }

  /** `total` is 0 if it isn't known. */
  update(loaded: number, total: number): void {
    const now = performance.now();
    if (now - this.#last < INTERVAL_MS) return;
    this.#last = now;
    const progress = total > 0 ? Math.min(100, (100 * loaded) / total) : 0;
    this.#callback?.({ status: "progress", name: this.#name, file: this.#file, loaded, total, progress });
  }

  done(size: number): void {
    this.#callback?.({
      status: "done",
      name: this.#name,
      file: this.#file,
      loaded: size,
      total: size,
      progress: 100,
    });
  }
}
