import { join } from "node:path";
import { write_durably } from "../../files/index.ts";
import type { MSNPretrainer } from "../../training/index.ts";
import { COLOURS, log_curves } from "./loss_curve.ts";
import { front_matter, metrics_table, options_table, repo_id, show, table } from "./model_card.ts";

export interface PretrainingFacts {
  /** The encoder that training started from; undefined for a new one. */
  base_model: string | undefined;
  branch: "target" | "online";
  /** The number of training images. */
  images: number;
  metrics: Readonly<Record<string, number>>;
}

/** Columns of the card's table of log entries. */
const COLUMNS = [
  "loss",
  "cross_entropy",
  "mean_entropy",
  "target_similarity",
  "prototypes_used",
  "effective_rank",
] as const;
/** The largest number of rows in that table. */
const MAX_ROWS = 20;

/** Writes figures and the model card into output_dir. */
export async function write_pretraining_report(
  pretrainer: MSNPretrainer,
  facts: PretrainingFacts,
): Promise<void> {
  const { args, state } = pretrainer;
  const folder = args.output_dir as string;
  const log = state.log_history;
  const loss = log_curves(log, "Loss by step", [
    { name: "loss", key: "loss", colour: COLOURS[0] },
    { name: "cross-entropy", key: "cross_entropy", colour: COLOURS[1] },
  ]);
  const use = log_curves(log, `Prototypes in use by step, of ${args.num_proto}`, [
    { name: "targets of images", key: "prototypes_used", colour: COLOURS[0] },
    { name: "exp(mean entropy)", key: "mean_entropy", colour: COLOURS[2], shown: Math.exp },
  ]);
  await write_durably(join(folder, "loss_curve.svg"), loss);
  await write_durably(join(folder, "prototype_use.svg"), use);
  await write_durably(join(folder, "README.md"), card(pretrainer, facts));
}

function card({ args, state, model }: MSNPretrainer, facts: PretrainingFacts): string {
  const base = repo_id(facts.base_model);
  const { hidden_size, num_hidden_layers, patch_size, image_size } = model.config;
  const entries = state.log_history.filter(({ cross_entropy }) => cross_entropy !== undefined);
  const step = Math.max(1, Math.ceil(entries.length / MAX_ROWS));
  const rows = entries.filter((_, i) => (entries.length - 1 - i) % step === 0);
  return [
    front_matter("image-feature-extraction", base),
    "# Image encoder",
    "",
    `ViT-MSN (${num_hidden_layers} layers of ${hidden_size}, patches of ${patch_size} on ${image_size} pixels), pre-trained ` +
      `${base ? `from [${base}](https://huggingface.co/${base}) ` : ""}without labels by Masked Siamese Networks ` +
      `([paper](https://arxiv.org/abs/2204.07141)) on ${facts.images} images, ${show(state.epoch)} epochs. This is the ` +
      `${facts.branch} encoder.`,
    "",
    "![Loss by step](loss_curve.svg)",
    "",
    "![Prototypes in use by step](prototype_use.svg)",
    "",
    "## Use",
    "",
    "```ts",
    'import { pipeline } from "vit-msn";',
    'const embed = await pipeline("image-feature-extraction", "path/to/this/folder", { pool: true });',
    'console.log(await embed("photo.jpg"));',
    "```",
    "",
    "The few-shot pipeline and `vit-msn train` can start from it, and Hugging Face transformers can load it: " +
      '`ViTMSNModel.from_pretrained("path/to/this/folder")`.',
    "",
    "## Training",
    "",
    table(
      ["epoch", "step", ...COLUMNS],
      rows.map((entry) => [show(entry.epoch), `${entry.step}`, ...COLUMNS.map((name) => show(entry[name]))]),
    ),
    "",
    metrics_table(facts.metrics),
    "",
    "Options:",
    "",
    options_table(args),
    "",
  ].join("\n");
}
