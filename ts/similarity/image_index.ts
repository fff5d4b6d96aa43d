import { save_files } from "#save";
import type { Engine } from "../engine/engine.ts";
import type { DeviceOptions } from "../engine/engine_options.ts";
import { open_engine } from "../engine/open_engine.ts";
import { invalid_argument as invalid, show, throw_if_aborted, VitMsnError } from "../errors.ts";
import { LOAD_RULES, SAVE_RULES } from "../loading/option_rules.ts";
import { open_source } from "../loading/source.ts";
import type { SaveDirectory, SaveOptions } from "../loading/storage_types.ts";
import type { LoadOptions, PretrainedSource } from "../loading/types.ts";
import { abort_signal, callable, check_options, count, flag, type Rules, wasm_input } from "../options.ts";
import { Tensor } from "../tensor.ts";
import { Blocks, type IndexDtype } from "./blocks.ts";
import { index_files, open_index } from "./index_file.ts";
import { TopK } from "./top_k.ts";
import { normalize, type Vector } from "./vectors.ts";

export interface ImageIndexOptions extends Pick<DeviceOptions, "num_threads" | "worker" | "wasm"> {
  /**
   * How vectors are stored. "float32" (default); "int8": a quarter of the memory, and scores within about 0.01.
   */
  dtype?: IndexDtype;
}

export interface NearestOptions {
  /** How many images to return, at most all; default 10. */
  k?: number;
  signal?: AbortSignal;
}

export interface DuplicatesOptions {
  /** The smallest cosine of two images that count as duplicates; default 0.95. */
  threshold?: number;
  signal?: AbortSignal;
  /** Called as images are compared with all others. */
  progress_callback?: (progress: { done: number; total: number }) => void;
}

/** An image that was found, and the cosine of its vector and the query's. */
export interface SimilarImage {
  name: string;
  score: number;
}

/** Two images, in the order in which they were added, and the cosine of their vectors. */
export interface SimilarPair {
  names: [string, string];
  score: number;
}

const INDEX_RULES: Rules = {
  dtype: ["float32", "int8"],
  num_threads: count,
  worker: flag,
  wasm: wasm_input,
};
const NEAREST_RULES: Rules = { k: count, signal: abort_signal };
const DUPLICATES_RULES: Rules = {
  threshold: ["a number from -1 to 1", (x) => typeof x === "number" && x >= -1 && x <= 1],
  signal: abort_signal,
  progress_callback: callable,
};
/** Images that are compared with all others at a time: a product of matrices, not of a matrix and a vector. */
const COMPARED_TOGETHER = 256;

/**
 * Finds similar images by the cosine of their embeddings: an exact search over all vectors on the CPU engine.
 *
 * Vectors of any model will do, if all are of one length; `pipeline("image-feature-extraction", …, { pool: true })`
 * gives them. Each index has its own engine, whose memory `dispose()` releases.
 */
export class ImageIndex {
  /** A literal, since minifiers rename classes. */
  static readonly name: string = "ImageIndex";
  readonly dtype: IndexDtype;
  readonly #engine: Engine;
  readonly #names: string[] = [];
  #size = 0;
  #blocks: Blocks | undefined;
  #is_disposed = false;
  /** Searches and changes run one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(engine: Engine, dtype: IndexDtype) {
    this.#engine = engine;
    this.dtype = dtype;
  }

  /** An empty index. @throws VitMsnError UNSUPPORTED, INVALID_ARGUMENT or IO. */
  static async create(options: ImageIndexOptions = {}): Promise<ImageIndex> {
    check_options("ImageIndex.create", options, INDEX_RULES);
    const { dtype = "float32", ...where } = options;
    const { engine } = await open_engine({ ...where, device: "wasm" });
    return new ImageIndex(engine, dtype);
  }

  /**
   * An index that `save()` wrote: a folder, a URL or a map of files, as from_pretrained takes them.
   * @throws VitMsnError NOT_FOUND, INVALID_CONFIG or INVALID_CHECKPOINT, and those of create().
   */
  static async load(
    source: PretrainedSource,
    options: Omit<ImageIndexOptions, "dtype"> & LoadOptions = {},
  ): Promise<ImageIndex> {
    const { dtype: _, ...rules } = INDEX_RULES;
    check_options("ImageIndex.load", options, rules, LOAD_RULES, SAVE_RULES);
    const { num_threads, worker, wasm, ...load } = options;
    const saved = await open_index(await open_source(source, load));
    try {
      const index = await ImageIndex.create({ dtype: saved.dtype, num_threads, worker, wasm });
      try {
        let row = 0;
        for await (const vector of saved.rows()) {
          throw_if_aborted(load.signal, "Loading an image index");
          index.#add(saved.names[row++] as string, vector);
        }
        return index;
      } catch (error) {
        await index.dispose();
        throw error;
      }
    } finally {
      await saved.close();
    }
  }

  /** The number of images. */
  get length(): number {
    return this.#names.length;
  }

  /** The length of each vector; 0 while the index is empty. */
  get size(): number {
    return this.#size;
  }

  /** The images' names, in the order in which they were added; a name may occur more than once. */
  get names(): readonly string[] {
    return this.#names;
  }

  /**
   * Adds an image, or several: a name and its vector, or a list of names and a Tensor [names, size] or a list of vectors.
   * All are added, or none.
   * @throws VitMsnError INVALID_ARGUMENT for vectors of another length or with NaN or infinity.
   */
  add(name: string, vector: Vector | Tensor): void;
  add(names: readonly string[], vectors: readonly Vector[] | Tensor): void;
  add(names: string | readonly string[], vectors: Vector | readonly Vector[] | Tensor): void {
    this.#check_alive();
    const list = typeof names === "string" ? [names] : names;
    const bad = Array.isArray(list)
      ? list.find((name) => typeof name !== "string" || name.includes("\0"))
      : list;
    if (bad !== undefined) throw invalid(`A name must be a string without NUL, got ${show(bad)}.`);
    const rows = this.#rows_of(vectors, "add");
    if (rows.length !== list.length)
      throw invalid(
        `add() takes one vector for each name, but got ${list.length} names and ${rows.length} vectors.`,
      );
    for (const [i, row] of rows.entries()) this.#add(list[i] as string, normalize(row));
  }

  #add(name: string, unit_vector: Float32Array): void {
    this.#size ||= unit_vector.length;
    this.#blocks ??= new Blocks(this.#engine, this.#size, this.dtype);
    this.#blocks.add(unit_vector);
    this.#names.push(name);
  }

  /**
   * The images whose vectors have the largest cosine with the query, best first; for several queries, a list for each.
   * @param query a vector, a Tensor [size] or [1, size], or a list of vectors.
   * @throws VitMsnError INVALID_ARGUMENT, ABORTED or DISPOSED.
   */
  async nearest(query: readonly Vector[], options?: NearestOptions): Promise<SimilarImage[][]>;
  async nearest(query: Vector | Tensor, options?: NearestOptions): Promise<SimilarImage[]>;
  async nearest(
    query: Vector | readonly Vector[] | Tensor,
    options: NearestOptions = {},
  ): Promise<SimilarImage[] | SimilarImage[][]> {
    check_options("nearest", options, NEAREST_RULES);
    const { k = 10, signal } = options;
    const queries = this.#rows_of(query, "nearest").map(normalize);
    const is_list = !(query instanceof Tensor) && typeof query[0] !== "number";
    if (!is_list && queries.length !== 1)
      throw invalid(`nearest() takes one vector or a list of vectors, got a Tensor of ${queries.length}.`);
    const results = await this.#in_turn(() => this.#search(queries, k, signal));
    return is_list ? results : (results[0] as SimilarImage[]);
  }

  async #search(
    queries: Float32Array[],
    k: number,
    signal: AbortSignal | undefined,
  ): Promise<SimilarImage[][]> {
    const tops = queries.map(() => new TopK(k));
    for (let first = 0; first < queries.length; first += COMPARED_TOGETHER) {
      const some = queries.slice(first, first + COMPARED_TOGETHER);
      for await (const { scores, first_row, rows } of this.#blocks?.scores(joined(some), some.length) ?? []) {
        throw_if_aborted(signal, "A search for similar images");
        for (let i = 0; i < some.length; i++)
          tops[first + i]?.take(scores.subarray(i * rows, (i + 1) * rows), first_row);
      }
    }
    return tops.map(({ best }) =>
      best.map(({ index, score }) => ({ name: this.#names[index] as string, score: clamp(score) })),
    );
  }

  /**
   * All pairs of images whose vectors have at least a cosine of `threshold`, most similar first. It compares each image
   * with all others: 20,000 images of 384 numbers take about 300 billion operations.
   * @throws VitMsnError INVALID_ARGUMENT, ABORTED or DISPOSED.
   */
  async duplicates(options: DuplicatesOptions = {}): Promise<SimilarPair[]> {
    check_options("duplicates", options, DUPLICATES_RULES);
    return this.#in_turn(() => this.#pairs(options));
  }

  async #pairs({ threshold = 0.95, signal, progress_callback }: DuplicatesOptions): Promise<SimilarPair[]> {
    const total = this.length;
    const pairs: SimilarPair[] = [];
    let block_start = 0;
    for await (const { values, rows: block_rows } of this.#blocks?.values() ?? []) {
      for (let row = 0; row < block_rows; row += COMPARED_TOGETHER) {
        const some = Math.min(COMPARED_TOGETHER, block_rows - row);
        const queries = values.subarray(row * this.#size, (row + some) * this.#size);
        const first_query = block_start + row;
        for await (const found of this.#blocks?.scores(queries, some, first_query) ?? []) {
          throw_if_aborted(signal, "A search for duplicates");
          this.#collect(pairs, found, first_query, some, threshold);
        }
        progress_callback?.({ done: first_query + some, total });
      }
      block_start += block_rows;
    }
    return pairs.sort((a, b) => b.score - a.score);
  }

  #collect(
    pairs: SimilarPair[],
    { scores, first_row, rows }: { scores: Float32Array; first_row: number; rows: number },
    first_query: number,
    queries: number,
    threshold: number,
  ): void {
    for (let i = 0; i < queries; i++) {
      const a = first_query + i;
      for (let b = Math.max(a + 1, first_row); b < first_row + rows; b++) {
        const score = clamp(scores[i * rows + b - first_row] as number);
        if (score >= threshold)
          pairs.push({ names: [this.#names[a] as string, this.#names[b] as string], score });
      }
    }
  }

  /**
   * Writes the index into a folder: image_index.json and image_index.safetensors.
   * @throws VitMsnError IO, UNSUPPORTED or ABORTED.
   */
  async save(directory: SaveDirectory, options: SaveOptions = {}): Promise<void> {
    check_options("save", options, SAVE_RULES);
    await this.#in_turn(() => {
      const shape = { size: this.#size, dtype: this.dtype, names: this.#names };
      return save_files(directory, index_files(shape, this.#blocks), options);
    });
  }

  /** Releases the engine and its memory; later calls throw DISPOSED. */
  async dispose(): Promise<void> {
    if (this.#is_disposed) return;
    this.#is_disposed = true;
    await this.#turn.catch(() => {});
    await this.#engine.dispose();
  }

  /** The rows of vectors, each finite and of the index' size. */
  #rows_of(vectors: Vector | readonly Vector[] | Tensor, what: string): Float32Array[] {
    const rows = rows_of(vectors);
    const size = this.#size || rows[0]?.length;
    for (const row of rows) {
      if (row.length === 0 || row.length !== size)
        throw invalid(
          `${what}() takes vectors of ${size || "at least 1"} numbers, got one of ${row.length}.`,
        );
      const bad = row.findIndex((value) => !Number.isFinite(value));
      if (bad >= 0) throw invalid(`A vector for ${what}() holds ${row[bad]} at ${bad}.`);
    }
    return rows;
  }

  #check_alive(): void {
    if (this.#is_disposed) throw new VitMsnError("DISPOSED", "The image index was disposed.");
  }

  #in_turn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(() => {
      this.#check_alive();
      return action();
    });
    this.#turn = result.catch(() => {});
    return result;
  }
}

/** Rounding may lead a little beyond 1. */
const clamp = (score: number): number => Math.min(1, Math.max(-1, score));

function rows_of(vectors: Vector | readonly Vector[] | Tensor): Float32Array[] {
  if (vectors instanceof Tensor) {
    const { dims } = vectors;
    if (vectors.type !== "float32" || dims.length < 1 || dims.length > 2)
      throw invalid(
        `Vectors must be a float32 Tensor [size] or [images, size], got ${vectors.type} [${dims.join(", ")}].`,
      );
    const size = dims.at(-1) as number;
    const data = vectors.data as Float32Array;
    return Array.from({ length: dims.length === 1 ? 1 : (dims[0] as number) }, (_, i) =>
      data.subarray(i * size, (i + 1) * size),
    );
  }
  if (typeof vectors !== "object" || vectors === null || typeof vectors.length !== "number")
    throw invalid(`A vector must be an array of numbers or a Tensor, got ${show(vectors)}.`);
  const is_list = Array.isArray(vectors) && typeof vectors[0] !== "number";
  const list = is_list ? (vectors as readonly Vector[]) : [vectors as Vector];
  return list.map((vector) => Float32Array.from(vector));
}

function joined(rows: readonly Float32Array[]): Float32Array {
  const size = rows[0]?.length ?? 0;
  const all = new Float32Array(rows.length * size);
  for (const [i, row] of rows.entries()) all.set(row, i * size);
  return all;
}
