import { Pacer } from "../engine/pacer.ts";
import { select } from "./cross_validation.ts";
import type { ProductEngine } from "./engine_products.ts";
import type { Example } from "./features.ts";
import { fit_plan, linear_head, make_problem, type RunOptions } from "./fit.ts";
import type { FitPlan, LogisticPlan } from "./fit_options.ts";
import { type Head, predict } from "./heads.ts";
import { fit_logistic_regression, make_design } from "./logistic_regression.ts";

/** How often a head is correct. */
export interface Evaluation {
  accuracy: number;
  correct: number;
  total: number;
  labels: readonly string[];
  /** confusion[i][j]: the number of images of labels[i] that were classified as labels[j]. */
  confusion: number[][];
}

/** Counts (true label, predicted label). */
export function summarise(
  labels: readonly string[],
  pairs: readonly { label: string; predicted: string }[],
): Evaluation {
  const index = new Map(labels.map((label, i) => [label, i]));
  const confusion = labels.map(() => labels.map(() => 0));
  for (const { label, predicted } of pairs) {
    const row = confusion[index.get(label) as number] as number[];
    const column = index.get(predicted) as number;
    row[column] = (row[column] as number) + 1;
  }
  const correct = confusion.reduce((sum, row, i) => sum + (row[i] as number), 0);
  return {
    accuracy: pairs.length === 0 ? 0 : correct / pairs.length,
    correct,
    total: pairs.length,
    labels,
    confusion,
  };
}

/**
 * Classifies each example by a head that is fitted to all others, with the method and penalty of `plan`. A
 * label's only example is always wrong.
 * @param plan with a numeric penalty: it isn't chosen again for each example.
 */
export async function leave_one_out(
  examples: readonly Example[],
  plan: FitPlan,
  { signal, progress_callback, engine }: RunOptions,
): Promise<Evaluation> {
  const pacer = new Pacer(signal, "Leave-one-out");
  const problem = make_problem(examples);
  const refit =
    plan.method === "logistic_regression"
      ? await logistic_refits(examples, plan, { pacer, engine })
      : undefined;
  const neighbors = plan.method === "knn" ? (await fit_plan(problem, plan, { signal })).head : undefined;
  const of_label = problem.labels.map((_, c) => problem.classes.filter((other) => other === c).length);
  const pairs: { label: string; predicted: string }[] = [];
  for (const [i, { label, feature }] of examples.entries()) {
    const has_others = (of_label[problem.classes[i] as number] as number) > 1;
    const head =
      neighbors ?? (refit && has_others ? await refit(i) : await fit_rest(examples, i, plan, signal));
    pairs.push({ label, predicted: typeof head === "string" ? head : predict(head, feature, i) });
    progress_callback?.({ status: "leave_one_out", done: i + 1, total: examples.length });
    await pacer.step();
  }
  return summarise(problem.labels, pairs);
}

/** A head fitted to all examples but one; the label, if only one label is left. */
async function fit_rest(
  examples: readonly Example[],
  held_out: number,
  plan: FitPlan,
  signal: AbortSignal | undefined,
): Promise<Head | string> {
  const rest = examples.filter((_, i) => i !== held_out);
  const [first] = rest;
  if (first !== undefined && rest.every(({ label }) => label === first.label)) return first.label;
  return (await fit_plan(make_problem(rest), plan, { signal })).head;
}

/** Logistic regressions of all examples but one, each starting from the optimum for all. */
async function logistic_refits(
  examples: readonly Example[],
  plan: LogisticPlan,
  run: { pacer: Pacer; engine: ProductEngine | undefined },
) {
  const { labels, classes, features } = make_problem(examples);
  const design = make_design(features);
  const options = { ...plan, ...run, penalty: plan.penalty as number };
  const start = await fit_logistic_regression(design.rows, classes, labels.length, options);
  return async (held_out: number): Promise<Head> => {
    const rest = select(design.rows, classes, (i) => i !== held_out);
    const solution = await fit_logistic_regression(rest.rows, rest.classes, labels.length, {
      ...options,
      start,
    });
    return linear_head(labels, solution, design);
  };
}
