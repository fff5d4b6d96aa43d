import { existsSync } from "node:fs";
import type { ProblemType } from "../../index.ts";
import type { LogEntry, TrainingArguments } from "../../training/index.ts";

export interface ModelCardFacts {
  /** The model that training started from: a repo id or a folder. */
  base_model: string;
  problem_type: ProblemType | null;
  classes: readonly string[];
  train_examples: number;
  eval_examples: number | undefined;
  args: TrainingArguments;
  log: readonly LogEntry[];
  results: Readonly<Record<string, number>>;
  /** Figures in the same folder. */
  figures: readonly { file: string; title: string }[];
}

/** Repo ids of the hub; local paths mean nothing to a card's readers. */
const REPO = /^\w[\w.-]*\/\w[\w.-]*$/;

/** A base model's repo id; undefined for anything else, such as an existing local folder models/base. */
export function repo_id(base: string | undefined): string | undefined {
  return base !== undefined && REPO.test(base) && !existsSync(base) ? base : undefined;
}

/** Options that describe a run's location rather than the run. */
const OMITTED = ["output_dir"];

/** README.md of a trained model, with the hub's front matter. */
export function model_card(facts: ModelCardFacts): string {
  const { train_examples, eval_examples, results } = facts;
  const base = repo_id(facts.base_model);
  const held_out = eval_examples === undefined ? "" : `, evaluated on ${eval_examples}`;
  return [
    front_matter("image-classification", base, results.eval_accuracy === undefined ? [] : ["accuracy"]),
    facts.problem_type === "regression" ? "# Image regression" : "# Image classifier",
    "",
    `ViT-MSN${base ? `, fine-tuned from [${base}](https://huggingface.co/${base})` : ""}, for ${task_of(facts)}. Trained on ${train_examples} images${held_out}.`,
    "",
    "## Results",
    "",
    metrics_table(results),
    ...facts.figures.flatMap(({ file, title }) => ["", `![${title}](${file})`]),
    "",
    "## Use",
    "",
    "```ts",
    'import { pipeline } from "vit-msn";',
    'const classify = await pipeline("image-classification", "path/to/this/folder");',
    'console.log(await classify("photo.jpg"));',
    "```",
    "",
    'Hugging Face transformers can load it, too: `pipeline("image-classification", model="path/to/this/folder")`.',
    "",
    "## Training",
    "",
    ...training_log(facts.log),
    "Options:",
    "",
    options_table(facts.args),
    "",
  ].join("\n");
}

function task_of({ problem_type, classes }: ModelCardFacts): string {
  if (problem_type === "regression") return classes.length === 1 ? "a number" : `${classes.length} numbers`;
  const several = problem_type === "multi_label_classification" ? ", several for each image" : "";
  return `${classes.length} classes${several}: ${classes.map(escape_markdown).join(", ")}`;
}

/** A table of a run's options. */
export function options_table(args: { to_dict(): Record<string, unknown> }): string {
  const shown = Object.entries(args.to_dict()).filter(([name]) => !OMITTED.includes(name));
  return table(
    ["option", "value"],
    shown.map(([name, value]) => [name, `\`${JSON.stringify(value)}\``]),
  );
}

export function metrics_table(metrics: Readonly<Record<string, number>>): string {
  return table(
    ["metric", "value"],
    Object.entries(metrics).map(([name, value]) => [name, show(value)]),
  );
}

/** The hub's front matter. @param task the pipeline's name on the hub. */
export function front_matter(
  task: string,
  base: string | undefined,
  metrics: readonly string[] = [],
): string {
  return [
    "---",
    "library_name: transformers",
    ...(base ? [`base_model: ${base}`] : []),
    `pipeline_tag: ${task}`,
    "tags:",
    `- ${task}`,
    "- vit_msn",
    "- vit-msn",
    ...(metrics.length === 0 ? [] : ["metrics:", ...metrics.map((name) => `- ${name}`)]),
    "---",
    "",
  ].join("\n");
}

/** The metric in the table of evaluations, by kind of labels: the first that there is. */
const SHOWN_METRICS = [
  ["eval_accuracy", "accuracy"],
  ["eval_f1_micro", "F1"],
  ["eval_r2", "R²"],
] as const;

/** A table of all evaluations, each with the last training loss before it. */
function training_log(log: readonly LogEntry[]): string[] {
  const [key, name] = SHOWN_METRICS.find(([key]) => log.some((entry) => key in entry)) ?? SHOWN_METRICS[0];
  let training = "";
  const rows: string[][] = [];
  for (const entry of log) {
    if (entry.loss !== undefined) training = show(entry.loss);
    if (entry.eval_loss === undefined) continue;
    rows.push([show(entry.epoch), `${entry.step}`, training, show(entry.eval_loss), show(entry[key])]);
  }
  if (rows.length === 0) return [];
  return [table(["epoch", "step", "training loss", "validation loss", name], rows), ""];
}

export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  return [line(heading), line(heading.map(() => "---")), ...rows.map(line)].join("\n");
}

export function show(value: number | undefined): string {
  if (value === undefined) return "";
  return Number.isInteger(value) ? `${value}` : `${Number(value.toPrecision(5))}`;
}

function escape_markdown(name: string): string {
  return name.replace(/[\r\n]+/g, " ").replace(/[\\`*_[\]<>|#]/g, "\\$&");
}
