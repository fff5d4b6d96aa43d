/** The `k` largest scores with their indices, largest first; of equal ones, the first. */
export class TopK {
  readonly #k: number;
  /** Largest first. */
  readonly #best: { index: number; score: number }[] = [];

  constructor(k: number) {
    this.#k = k;
  }

  /** Takes scores of consecutive indices. */
  take(scores: Float32Array, first_index: number): void {
    for (let i = 0; i < scores.length; i++) {
      const score = scores[i] as number;
      if (this.#best.length < this.#k) this.#insert(first_index + i, score);
      else if (score > (this.#best[this.#k - 1]?.score as number)) {
        this.#best.pop();
        this.#insert(first_index + i, score);
      }
    }
  }

  get best(): readonly { index: number; score: number }[] {
    return this.#best;
  }

  #insert(index: number, score: number): void {
    let low = 0;
    let high = this.#best.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#best[middle]?.score as number) >= score) low = middle + 1;
      else high = middle;
    }
    this.#best.splice(low, 0, { index, score });
  }
}
