import { VitMsnError } from "../../errors.ts";
import type { ProblemType } from "../../model/configuration_vit_msn.ts";
import { check_options, flag } from "../../options.ts";
import { permutation, Random } from "../random.ts";
import type { Dataset, Example } from "./dataset.ts";
import { split_stratified } from "./sampling.ts";

/** Images with labels, each read on demand. */
export class LabelledImages implements Dataset {
  /** Set explicitly, since minifiers rename classes. */
  static readonly name: string = "LabelledImages";
  /** Class names by index; undefined for regression. */
  readonly classes: readonly string[] | undefined;
  readonly examples: readonly Example[];
  readonly problem_type: ProblemType;

  constructor(
    classes: readonly string[] | undefined,
    examples: readonly Example[],
    problem_type: ProblemType = "single_label_classification",
  ) {
    this.classes = classes;
    this.examples = examples;
    this.problem_type = problem_type;
  }

  get length(): number {
    return this.examples.length;
  }

  /** The number of logits that a model needs for these labels. */
  get num_labels(): number {
    const label = this.examples[0]?.label;
    return this.classes?.length ?? (Array.isArray(label) ? label.length : 1);
  }

  get(index: number): Example {
    return this.examples[index] as Example;
  }

  /**
   * Splits the images at random into two parts with the same classes; `share` of them are in the second, of each class
   * alike if the split is `stratified`, as scikit-learn's train_test_split does.
   */
  split(share: number, seed = 42, options: { stratified?: boolean } = {}): [this, this] {
    check_options("split", options, { stratified: flag });
    if (!(share > 0 && share < 1))
      throw invalid(`The share to split off must be above 0 and below 1, got ${share}.`);
    if (options.stratified && this.problem_type === "regression")
      throw invalid(
        "A stratified split needs classes, but the labels are numbers; split without stratified.",
      );
    const order = permutation(this.length, new Random(seed));
    const second = Math.min(Math.max(1, Math.ceil(this.length * share)), this.length - 1);
    const [first_indices, second_indices] = options.stratified
      ? split_stratified(order, (i) => this.get(i).label, second)
      : [order.subarray(second), order.subarray(0, second)];
    return [this.#pick(first_indices), this.#pick(second_indices)];
  }

  /** Up to `count` images, chosen at random. */
  take(count: number, seed = 42): this {
    return this.#pick(permutation(this.length, new Random(seed)).subarray(0, count));
  }

  /** The same with other examples. */
  #pick(indices: Uint32Array): this {
    const examples = Array.from(indices, (i) => this.get(i));
    const Class = this.constructor as new (...args: ConstructorParameters<typeof LabelledImages>) => this;
    return new Class(this.classes, examples, this.problem_type);
  }
}

function invalid(message: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message);
}
