/** Classifies features: a linear layer, or the nearest neighbours among the examples. */
export type Head = LinearHead | NeighborHead;

/** A linear layer and softmax: logistic regression and nearest centroid. */
export class LinearHead {
  readonly labels: readonly string[];
  /** [labels, size]. */
  readonly weight: Float32Array;
  /** [labels]. */
  readonly bias: Float32Array;

  constructor(labels: readonly string[], weight: Float32Array, bias: Float32Array) {
    this.labels = labels;
    this.weight = weight;
    this.bias = bias;
  }

  /** The length of a feature. */
  get size(): number {
    return this.weight.length / this.labels.length;
  }

  /** The classes' probabilities, in the order of labels. */
  scores(feature: Float32Array, _held_out?: number): Float64Array {
    const { size } = this;
    const logits = Float64Array.from(this.labels, (_, c) => {
      let sum = this.bias[c] as number;
      for (let k = 0; k < size; k++) sum += (this.weight[c * size + k] as number) * (feature[k] as number);
      return sum;
    });
    return softmax(logits);
  }
}

/** How neighbours vote: by exp(cosine / temperature), as in DINO's k-NN evaluation, or all equally. */
export type NeighborWeights = "softmax" | "uniform";

export interface NeighborSettings {
  k: number;
  temperature: number;
  weights: NeighborWeights;
}

/** The k nearest neighbours by cosine. */
export class NeighborHead {
  readonly labels: readonly string[];
  /** [examples, size]. */
  readonly features: Float32Array;
  /** The label of each example, as its index. */
  readonly classes: Int32Array;
  readonly settings: NeighborSettings;
  readonly #lengths: Float64Array;

  constructor(
    labels: readonly string[],
    features: Float32Array,
    classes: Int32Array,
    settings: NeighborSettings,
  ) {
    this.labels = labels;
    this.features = features;
    this.classes = classes;
    this.settings = settings;
    this.#lengths = Float64Array.from(classes, (_, i) => length_of(this.#row(i)));
  }

  get size(): number {
    return this.features.length / this.classes.length;
  }

  #row(i: number): Float32Array {
    return this.features.subarray(i * this.size, (i + 1) * this.size);
  }

  /** Each class's share of the votes. @param held_out an example that doesn't vote. */
  scores(feature: Float32Array, held_out = -1): Float64Array {
    const { k, temperature, weights } = this.settings;
    const length = length_of(feature);
    const cosines = Float64Array.from(this.#lengths, (other, i) => {
      const product = length * other;
      return product === 0 ? 0 : dot(feature, this.#row(i)) / product;
    });
    if (held_out >= 0) cosines[held_out] = Number.NEGATIVE_INFINITY;
    const nearest = indices_of_largest(cosines, Math.min(k, cosines.length - (held_out < 0 ? 0 : 1)));
    const best = cosines[nearest[0] ?? 0] ?? 0;
    const votes = new Float64Array(this.labels.length);
    for (const i of nearest) {
      const vote = weights === "uniform" ? 1 : Math.exp(((cosines[i] as number) - best) / temperature);
      const class_index = this.classes[i] as number;
      votes[class_index] = (votes[class_index] as number) + vote;
    }
    const total = votes.reduce((a, b) => a + b, 0);
    return votes.map((vote) => vote / total);
  }
}

/** The indices of the `count` largest values, the largest first; among equals, the first. */
export function indices_of_largest(values: Float64Array, count: number): number[] {
  if (count > FEW) {
    // The sort is stable.
    const all = Array.from(values, (_, i) => i);
    return all.sort((a, b) => (values[b] as number) - (values[a] as number)).slice(0, count);
  }
  const largest: number[] = [];
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    const is_full = largest.length === count;
    if (is_full && !(value > (values[largest[count - 1] as number] as number))) continue;
    let place = is_full ? count - 1 : largest.length;
    for (; place > 0 && value > (values[largest[place - 1] as number] as number); place--)
      largest[place] = largest[place - 1] as number;
    largest[place] = i;
  }
  return largest;
}

/** Up to this many, inserting each in its place is faster than sorting all. */
const FEW = 64;

export function softmax(logits: Float64Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = logits.map((x) => Math.exp(x - max));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => x / sum);
}

/** The label with the highest score. @param held_out the neighbour that doesn't vote. */
export function predict(head: Head, feature: Float32Array, held_out?: number): string {
  return head.labels[argmax(head.scores(feature, held_out))] as string;
}

/** The first of the largest values. */
export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

function length_of(a: Float32Array): number {
  return Math.sqrt(dot(a, a));
}
