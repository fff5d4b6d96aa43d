import type { Random } from "../random.ts";
import type { ExampleLabel } from "./dataset.ts";

/** The positions of each class's examples. */
function by_class(labels: Iterable<ExampleLabel | undefined>): number[][] {
  const positions = new Map<ExampleLabel | undefined, number[]>();
  let position = 0;
  for (const label of labels) {
    const known = positions.get(label);
    if (known === undefined) positions.set(label, [position]);
    else known.push(position);
    position++;
  }
  return [...positions.values()];
}

/**
 * Splits `count` examples off so that every class has about the same share of both parts: its exact share rounded down,
 * and one more for the classes with the largest remainders, as in scikit-learn's StratifiedShuffleSplit.
 * @param order the examples, shuffled; both parts keep the order.
 */
export function split_stratified(
  order: Uint32Array,
  label_of: (index: number) => ExampleLabel | undefined,
  count: number,
): [rest: Uint32Array, split_off: Uint32Array] {
  const classes = by_class(Array.from(order, label_of));
  const exact = classes.map(({ length }) => (count * length) / order.length);
  const counts = exact.map(Math.floor);
  const missing = count - counts.reduce((a, b) => a + b, 0);
  const by_remainder = [...exact.keys()].sort(
    (a, b) => (exact[b] as number) - (counts[b] as number) - ((exact[a] as number) - (counts[a] as number)),
  );
  for (const i of by_remainder.slice(0, missing)) counts[i] = (counts[i] as number) + 1;
  const chosen = new Set(classes.flatMap((positions, i) => positions.slice(0, counts[i])));
  return [order.filter((_, i) => !chosen.has(i)), order.filter((_, i) => chosen.has(i))];
}

/**
 * As many draws as there are examples, with replacement: each class is equally likely, and so is each example of a class.
 * torch's WeightedRandomSampler does the same with the weights 1 / (examples of the class).
 */
export function balanced_order(labels: readonly (ExampleLabel | undefined)[], random: Random): Uint32Array {
  const classes = by_class(labels);
  return Uint32Array.from(labels, () => {
    const positions = classes[random.integer(classes.length)] as number[];
    return positions[random.integer(positions.length)] as number;
  });
}
