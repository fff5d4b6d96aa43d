import { throw_if_aborted, VitMsnError } from "../../errors.ts";
import { permutation, Random } from "../random.ts";
import type { Collator, DrawnExample } from "./collate.ts";
import { type Dataset, type OpenedData, open_data, type TrainingData } from "./dataset.ts";
import { balanced_order } from "./sampling.ts";

export interface DataLoaderOptions<Batch> {
  batch_size: number;
  collate: Collator<Batch>;
  /** Whether to shuffle, by the seed, and augment. */
  is_training: boolean;
  /** Draw images of every class equally often, instead of every image once; default false. */
  is_balanced?: boolean;
  seed: number;
  drop_last?: boolean;
  signal?: AbortSignal | undefined;
}

/** An example in an epoch's order; `repeat` distinguishes draws of the same one. */
interface OrderedExample extends Pick<DrawnExample, "example" | "index"> {
  repeat?: number;
}

/** Separate the random streams of orders, images and batches. */
const [ORDER, IMAGE, BATCH] = [1, 2, 3];

/** Batches of data, epoch by epoch. An epoch depends only on the seed and its number. */
export class DataLoader<Batch> {
  /** Examples of one epoch; undefined for a stream. */
  readonly length: number | undefined;
  readonly #data: OpenedData;
  readonly #options: DataLoaderOptions<Batch>;
  /** Of all examples, once they were read. */
  #labels: readonly (string | number)[] | undefined;

  constructor(data: TrainingData, what: string, options: DataLoaderOptions<Batch>) {
    this.#data = open_data(data, what);
    this.#options = options;
    this.length = this.#data.dataset?.length;
    if (options.is_balanced && this.length === undefined)
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `train_sampling_strategy "class_balanced" needs data with a length; ${what} is a stream.`,
        { details: { argument: "train_sampling_strategy" } },
      );
    if (this.length === 0)
      throw new VitMsnError("INVALID_ARGUMENT", `${what} is empty.`, { details: { argument: what } });
  }

  /** Batches of one epoch; undefined for a stream. */
  get batches_per_epoch(): number | undefined {
    if (this.length === undefined) return undefined;
    const { batch_size, drop_last } = this.#options;
    return Math.max(
      1,
      drop_last ? Math.floor(this.length / batch_size) : Math.ceil(this.length / batch_size),
    );
  }

  /**
   * An epoch's batches; a batch is undefined if none of its images can be read. The next one is read while
   * one is used.
   * @param skip the number of batches that were already used; they aren't read again.
   */
  async *epoch(epoch: number, skip = 0): AsyncGenerator<Batch | undefined> {
    let next: Promise<Batch | undefined> | undefined;
    for await (const { drawn, number } of this.#drawn(epoch, skip)) {
      throw_if_aborted(this.#options.signal, "Reading images");
      const previous = next;
      next = this.#collate(drawn, epoch, number);
      next.catch(() => {}); // reported when it is awaited
      if (previous !== undefined) yield await previous;
    }
    if (next !== undefined) yield await next;
  }

  #collate(drawn: DrawnExample[], epoch: number, number: number): Promise<Batch | undefined> {
    const { collate, is_training, seed, signal } = this.#options;
    return collate(drawn, { is_training, random: new Random(seed, BATCH, epoch, number), signal });
  }

  /** The examples of each batch, before they are read. */
  async *#drawn(epoch: number, skip: number): AsyncGenerator<{ drawn: DrawnExample[]; number: number }> {
    const { batch_size, drop_last = false, seed } = this.#options;
    let number = 0;
    let drawn: DrawnExample[] = [];
    for await (const one of this.#examples(epoch, skip * batch_size)) {
      const { example, index, repeat } = one;
      const keys = repeat === undefined ? [index] : [index, repeat];
      drawn.push({ example, index, random: new Random(seed, IMAGE, epoch, ...keys) });
      if (drawn.length < batch_size) continue;
      yield { drawn, number: skip + number++ };
      drawn = [];
    }
    const is_only = skip + number === 0;
    if (drawn.length > 0 && (!drop_last || is_only)) yield { drawn, number: skip + number };
  }

  async *#examples(epoch: number, skip: number): AsyncGenerator<OrderedExample> {
    const { is_training, is_balanced = false, seed } = this.#options;
    const { dataset, stream } = this.#data;
    if (dataset === undefined) {
      let index = 0;
      for await (const example of stream()) {
        if (index >= skip) yield { example, index };
        index++;
      }
      return;
    }
    const random = new Random(seed, ORDER, epoch);
    const order = is_balanced
      ? balanced_order(await this.#all_labels(dataset), random)
      : is_training
        ? permutation(dataset.length, random)
        : undefined;
    for (let i = skip; i < dataset.length; i++) {
      const index = order?.[i] ?? i;
      yield { example: await dataset.get(index), index, ...(is_balanced && { repeat: i }) };
    }
  }

  async #all_labels(dataset: Dataset): Promise<readonly (string | number)[]> {
    if (this.#labels !== undefined) return this.#labels;
    const { problem_type = "single_label_classification" } = dataset;
    if (problem_type !== "single_label_classification")
      throw new VitMsnError(
        "INVALID_ARGUMENT",
        `train_sampling_strategy "class_balanced" needs one class for each image, but the labels are for ${problem_type}.`,
        { details: { argument: "train_sampling_strategy" } },
      );
    const labels: (string | number)[] = [];
    for (let i = 0; i < dataset.length; i++) {
      const { label } = await dataset.get(i);
      if (typeof label !== "string" && typeof label !== "number")
        throw new VitMsnError(
          "INVALID_ARGUMENT",
          `train_sampling_strategy "class_balanced" needs one class for each image; example ${i} has ${label === undefined ? "no label" : "several numbers"}.`,
          { details: { argument: "train_sampling_strategy", index: i } },
        );
      labels.push(label);
    }
    this.#labels = labels;
    return labels;
  }
}
