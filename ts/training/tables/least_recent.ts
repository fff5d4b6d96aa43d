/** A cache of limited size, from which what was used least recently is dropped first. */
export class LeastRecent<Key, Value> {
  readonly #max_size: number;
  readonly #size_of: (value: Value) => number;
  /** In the order of their last use. */
  readonly #entries = new Map<Key, { value: Promise<Value>; size: number }>();
  #size = 0;

  constructor(max_size: number, size_of: (value: Value) => number) {
    this.#max_size = max_size;
    this.#size_of = size_of;
  }

  /** The cached value, or else a new one; callers at the same time share it. What failed isn't cached. */
  async get(key: Key, make: () => Promise<Value>): Promise<Value> {
    const known = this.#entries.get(key);
    if (known !== undefined) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known.value;
    }
    const entry = { value: make(), size: 0 };
    this.#entries.set(key, entry);
    try {
      const value = await entry.value;
      if (this.#entries.get(key) !== entry) return value;
      entry.size = this.#size_of(value);
      this.#size += entry.size;
      this.#shrink();
      return value;
    } catch (error) {
      this.#entries.delete(key);
      throw error;
    }
  }

  /** The newest entry always stays. */
  #shrink(): void {
    for (const [key, { size }] of this.#entries) {
      if (this.#size <= this.#max_size || this.#entries.size === 1) return;
      this.#entries.delete(key);
      this.#size -= size;
    }
  }
}
