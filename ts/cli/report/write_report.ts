import { join } from "node:path";
import { write_durably } from "../../files/index.ts";
import type { Trainer } from "../../training/index.ts";
import { confusion_matrix_svg } from "./confusion_matrix.ts";
import { loss_curve } from "./loss_curve.ts";
import { model_card } from "./model_card.ts";

export interface ReportFacts {
  base_model: string;
  /** Undefined if nothing was trained. */
  train_examples: number | undefined;
  eval_examples: number | undefined;
  eval_metrics: Readonly<Record<string, number>> | undefined;
  /** [true class][predicted class]. */
  confusion: readonly (readonly number[])[] | undefined;
}

/** Writes metrics, figures and, after training, the model card to output_dir. @returns all metrics. */
export async function write_report(trainer: Trainer, facts: ReportFacts): Promise<Record<string, number>> {
  const { args, model, state } = trainer;
  const folder = args.output_dir as string;
  const { eval_metrics, confusion, train_examples, eval_examples } = facts;
  const trained = train_examples === undefined ? {} : last_training_metrics(trainer);
  const results = { ...trained, ...eval_metrics };
  const classes = Object.values(model.config.id2label);
  const figures: { file: string; title: string }[] = [];
  const draw = async (file: string, title: string, content: string) => {
    await write_durably(join(folder, file), content);
    figures.push({ file, title });
  };
  if (eval_metrics) await trainer.save_metrics("eval", { epoch: state.epoch, ...eval_metrics });
  await trainer.save_metrics("all", { epoch: state.epoch, ...results });
  if (train_examples !== undefined)
    await draw("loss_curve.svg", "Loss by optimiser step", loss_curve(state.log_history));
  if (confusion)
    await draw("confusion_matrix.svg", "Confusion matrix", confusion_matrix_svg(confusion, classes));
  if (train_examples !== undefined) {
    const { base_model } = facts;
    const card = {
      base_model,
      problem_type: model.config.problem_type,
      classes,
      train_examples,
      eval_examples,
      args,
      log: state.log_history,
      results,
      figures,
    };
    await write_durably(join(folder, "README.md"), model_card(card));
  }
  return results;
}

/** The metrics that train() logged at its end. */
function last_training_metrics({ state }: Trainer): Record<string, number> {
  const entry = state.log_history.findLast(({ train_runtime }) => train_runtime !== undefined);
  return Object.fromEntries(
    Object.entries<number>(entry ?? {}).filter(([name]) => name.startsWith("train_")),
  );
}
