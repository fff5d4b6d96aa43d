import { existsSync } from "node:fs";
import type { LogEntry, TrainingArguments } from "../../training/index.ts";

export interface ModelCardFacts {
  /** What the model was trained from: a repo id or a folder. */
  base_model: string;
  classes: readonly string[];
  train_examples: number;
  eval_examples: number | undefined;
  args: TrainingArguments;
  log: readonly LogEntry[];
  results: Readonly<Record<string, number>>;
  /** Which of the pictures lie beside it. */
  figures: readonly { file: string; title: string }[];
}

/** Repo ids of the hub, which its cards may name; a local path says nothing to others. */
const REPO = /^\w[\w.-]*\/\w[\w.-]*$/;

/** A base model's repo id; undefined for anything else, as a local folder models/base, which is what was loaded then. */
export function repo_id(base: string | undefined): string | undefined {
  return base !== undefined && REPO.test(base) && !existsSync(base) ? base : undefined;
}

/** Options that say where a run was, not what it did. */
const LEFT_OUT = ["output_dir"];

/** README.md of a trained model, with the hub's front matter. */
export function model_card(facts: ModelCardFacts): string {
  const { classes, train_examples, eval_examples, results } = facts;
  const base = repo_id(facts.base_model);
  const held_out = eval_examples === undefined ? "" : `, evaluated on ${eval_examples}`;
  return [
    front_matter(base, results),
    "# Image classifier",
    "",
    `ViT-MSN${base ? `, fine-tuned from [${base}](https://huggingface.co/${base})` : ""}, for ${classes.length} classes: ` +
      `${classes.map(escape_markdown).join(", ")}. Trained on ${train_examples} pictures${held_out}.`,
    "",
    "## Results",
    "",
    table(
      ["metric", "value"],
      Object.entries(results).map(([name, value]) => [name, show(value)]),
    ),
    ...facts.figures.flatMap(({ file, title }) => ["", `![${title}](${file})`]),
    "",
    "## Use",
    "",
    "```ts",
    'import { pipeline } from "vit-msn";',
    'const classify = await pipeline("image-classification", "path/to/this/folder");',
    'console.log(await classify("picture.jpg"));',
    "```",
    "",
    'Hugging Face transformers opens it, too: `pipeline("image-classification", model="path/to/this/folder")`.',
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

/** A run's options. */
export function options_table(args: { to_dict(): Record<string, unknown> }): string {
  const told = Object.entries(args.to_dict()).filter(([name]) => !LEFT_OUT.includes(name));
  return table(
    ["option", "value"],
    told.map(([name, value]) => [name, `\`${JSON.stringify(value)}\``]),
  );
}

function front_matter(base: string | undefined, results: Readonly<Record<string, number>>): string {
  const accuracy = results.eval_accuracy;
  return [
    "---",
    "library_name: transformers",
    ...(base ? [`base_model: ${base}`] : []),
    "pipeline_tag: image-classification",
    "tags:",
    "- image-classification",
    "- vit_msn",
    "- vit-msn",
    ...(accuracy === undefined ? [] : ["metrics:", "- accuracy"]),
    "---",
    "",
  ].join("\n");
}

/** What each evaluation said, with the training loss before it. */
function training_log(log: readonly LogEntry[]): string[] {
  let training = "";
  const rows: string[][] = [];
  for (const entry of log) {
    if (entry.loss !== undefined) training = show(entry.loss);
    if (entry.eval_loss === undefined) continue;
    rows.push([
      show(entry.epoch),
      `${entry.step}`,
      training,
      show(entry.eval_loss),
      show(entry.eval_accuracy),
    ]);
  }
  if (rows.length === 0) return [];
  return [table(["epoch", "step", "training loss", "validation loss", "accuracy"], rows), ""];
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
