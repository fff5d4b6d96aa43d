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
  scores(feature: Float32Array): Float64Array {
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
    const neighbours: { cosine: number; class_index: number }[] = [];
    for (let i = 0; i < this.classes.length; i++) {
      if (i === held_out) continue;
      const product = length * (this.#lengths[i] as number);
      const cosine = product === 0 ? 0 : dot(feature, this.#row(i)) / product;
      neighbours.push({ cosine, class_index: this.classes[i] as number });
    }
    // The sort is stable: among equals, the example that was added first.
    const nearest = neighbours.sort((a, b) => b.cosine - a.cosine).slice(0, k);
    const best = nearest[0]?.cosine ?? 0;
    const votes = new Float64Array(this.labels.length);
    for (const { cosine, class_index } of nearest) {
      const vote = weights === "uniform" ? 1 : Math.exp((cosine - best) / temperature);
      votes[class_index] = (votes[class_index] as number) + vote;
    }
    const total = votes.reduce((a, b) => a + b, 0);
    return votes.map((vote) => vote / total);
  }
}

export function softmax(logits: Float64Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = logits.map((x) => Math.exp(x - max));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => x / sum);
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
