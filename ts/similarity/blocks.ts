import type { WeightDtype } from "../dtypes.ts";
import { type Engine, type LinearHandle, Scope } from "../engine/engine.ts";

export type IndexDtype = Extract<WeightDtype, "float32" | "int8">;

/** Rows of a block: adding rows packs again only the last block, and scores of a block stay in the cache. */
export const BLOCK_ROWS = 4096;

interface Block {
  handle: LinearHandle;
  rows: number;
}

/**
 * Rows of unit length on an engine, as the weights of linear layers: their scores for a query are one row of a matrix
 * product.
 */
export class Blocks {
  readonly #engine: Engine;
  readonly #size: number;
  readonly #dtype: IndexDtype;
  readonly #blocks: Block[] = [];
  /** Rows that are not in a block yet; fewer than BLOCK_ROWS between calls. */
  #waiting = new Float32Array(0);
  #waiting_rows = 0;
  /** The waiting rows as a block; undefined while they change. */
  #last: Block | undefined;
  /** Searches under way, and the blocks to free when they have ended: rows may be added meanwhile. */
  #readers = 0;
  #replaced: Block[] = [];

  constructor(engine: Engine, size: number, dtype: IndexDtype) {
    this.#engine = engine;
    this.#size = size;
    this.#dtype = dtype;
  }

  add(row: Float32Array): void {
    if (this.#last) this.#replaced.push(this.#last);
    this.#last = undefined;
    this.#free_replaced();
    const end = (this.#waiting_rows + 1) * this.#size;
    if (end > this.#waiting.length) this.#grow(end);
    this.#waiting.set(row, end - this.#size);
    this.#waiting_rows++;
    if (this.#waiting_rows < BLOCK_ROWS) return;
    this.#blocks.push(this.#pack());
    this.#waiting_rows = 0;
  }

  #free_replaced(): void {
    if (this.#readers > 0) return;
    for (const { handle } of this.#replaced) this.#engine.free(handle);
    this.#replaced = [];
  }

  #grow(length: number): void {
    const larger = new Float32Array(Math.min(2 * length, BLOCK_ROWS * this.#size));
    larger.set(this.#waiting);
    this.#waiting = larger;
  }

  #pack(): Block {
    const rows = this.#waiting_rows;
    const handle = this.#engine.linear_weights(rows, this.#size, this.#dtype, false);
    const bytes = new Uint8Array(this.#waiting.buffer, 0, 4 * rows * this.#size);
    this.#engine.set_rows(handle, 0, bytes, "float32");
    return { handle, rows };
  }

  /** All rows of this moment. */
  *#all(): Generator<Block> {
    if (this.#waiting_rows > 0) this.#last ??= this.#pack();
    const blocks = this.#last ? [...this.#blocks, this.#last] : [...this.#blocks];
    this.#readers++;
    try {
      yield* blocks;
    } finally {
      this.#readers--;
      this.#free_replaced();
    }
  }

  /**
   * The scores of `count` queries of unit length, block by block: [count, rows of the block].
   * @param from_row skips blocks that end before this row.
   */
  async *scores(
    queries: Float32Array,
    count: number,
    from_row = 0,
  ): AsyncGenerator<{ scores: Float32Array; first_row: number; rows: number }> {
    let first_row = 0;
    for (const { handle, rows } of this.#all()) {
      if (first_row + rows > from_row) {
        const scope = new Scope(this.#engine);
        try {
          const x = scope.use(this.#engine.tensor(queries, [count, this.#size]));
          const product = scope.use(this.#engine.linear(x, handle, "identity"));
          yield { scores: await this.#engine.read(product), first_row, rows };
        } finally {
          scope.close();
        }
      }
      first_row += rows;
    }
  }

  /** The rows as they are stored, block by block: values of the dtype and, with int8, a float32 scale for each row. */
  async *stored(): AsyncGenerator<{ values: Uint8Array; scales: Uint8Array | undefined; rows: number }> {
    for (const { handle, rows } of this.#all()) {
      const values = await this.#engine.get_rows(handle, 0, rows);
      const scales = this.#dtype === "int8" ? await this.#engine.get_scales(handle, 0, rows) : undefined;
      yield { values, scales, rows };
    }
  }

  /** The rows as float32, block by block. */
  async *values(): AsyncGenerator<{ values: Float32Array; rows: number }> {
    for await (const { values, scales, rows } of this.stored())
      yield { values: to_float32(values, scales, this.#size), rows };
  }
}

/** Rows in the form that the engine stores, widened. */
export function to_float32(values: Uint8Array, scales: Uint8Array | undefined, size: number): Float32Array {
  if (scales === undefined) return floats_of(values);
  const steps = new Int8Array(values.buffer, values.byteOffset, values.byteLength);
  const scale = floats_of(scales);
  return Float32Array.from(steps, (step, i) => step * (scale[Math.floor(i / size)] as number));
}

function floats_of(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.slice().buffer);
}
