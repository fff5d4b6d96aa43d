import { Pacer } from "../engine/pacer.ts";
import { invalid_argument as invalid } from "../errors.ts";
import { mix } from "../model/random.ts";
import { type Evaluation, summarise } from "./evaluation.ts";
import { type Example, labels_of } from "./features.ts";
import { fit_head, type RunOptions } from "./fit.ts";
import type { FitPlan } from "./fit_options.ts";
import { predict } from "./heads.ts";

/**
 * For each seed from 0 to `seeds` - 1, fits a head to `shots` examples of each label, drawn at random, and classifies all
 * others: the protocol of the MSN paper's low-shot evaluation.
 *
 * @throws VitMsnError INVALID_ARGUMENT unless every label has more than `shots` examples; ABORTED.
 */
export async function low_shot(
  examples: readonly Example[],
  shots: number,
  seeds: number,
  plan: FitPlan,
  options: RunOptions,
): Promise<Evaluation[]> {
  const groups = labels_of(examples).map((label) => examples.filter((example) => example.label === label));
  const small = groups.find(({ length }) => length <= shots);
  if (small !== undefined) {
    throw invalid(
      `${JSON.stringify(small[0]?.label)} has ${small.length} images; drawing ${shots} and evaluating on others takes more.`,
    );
  }
  const pacer = new Pacer(options.signal, "Low-shot evaluation");
  const results: Evaluation[] = [];
  for (let seed = 0; seed < seeds; seed++) {
    const rank = ({ id }: Example) => mix(id ^ mix(seed + 1));
    const shuffled = groups.map((group) => [...group].sort((a, b) => rank(a) - rank(b)));
    const drawn = shuffled.flatMap((group) => group.slice(0, shots));
    const { head } = await fit_head(drawn, plan, options);
    const pairs: { label: string; predicted: string }[] = [];
    for (const { label, feature } of shuffled.flatMap((group) => group.slice(shots))) {
      pairs.push({ label, predicted: predict(head, feature) });
      await pacer.step();
    }
    results.push(summarise(head.labels, pairs));
  }
  return results;
}
