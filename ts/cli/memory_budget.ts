import type { ImageHeader } from "../image/index.ts";

/** Bytes of memory that several images share. Those that don't fit wait, in order. */
export class MemoryBudget {
  readonly #total: number;
  #free: number;
  readonly #waiting: { bytes: number; enter: () => void }[] = [];

  constructor(bytes: number) {
    this.#total = bytes;
    this.#free = bytes;
  }

  /**
   * Resolves once `bytes` are free, and returns what releases them. More than the budget takes all of it: the image is
   * then alone.
   * @throws the signal's reason if it fires first.
   */
  async take(bytes: number, signal: AbortSignal): Promise<() => void> {
    const taken = Math.min(bytes, this.#total);
    await this.#enter(taken, signal);
    let is_taken = true;
    return () => {
      if (!is_taken) return;
      is_taken = false;
      this.#free += taken;
      this.#admit();
    };
  }

  #enter(bytes: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const enter = () => {
        signal.removeEventListener("abort", give_up);
        resolve();
      };
      const waiting = { bytes, enter };
      const give_up = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
        reject(signal.reason);
        this.#admit();
      };
      signal.addEventListener("abort", give_up, { once: true });
      this.#waiting.push(waiting);
      this.#admit();
    });
  }

  #admit(): void {
    for (let [next] = this.#waiting; next !== undefined && next.bytes <= this.#free; [next] = this.#waiting) {
      this.#waiting.shift();
      this.#free -= next.bytes;
      next.enter();
    }
  }
}

/** Red, green, blue and alpha, decoded and once more in the decoder. */
const BYTES_PER_PIXEL = 8;

/** The most memory that decoding an image takes. @param max_pixels for files whose header doesn't give their size. */
export function decoding_bytes({ width, height }: ImageHeader, max_pixels: number): number {
  return image_memory(width === undefined || height === undefined ? max_pixels : width * height);
}

/** The most memory that decoding this many pixels takes. */
export function image_memory(pixels: number): number {
  return pixels * BYTES_PER_PIXEL;
}
