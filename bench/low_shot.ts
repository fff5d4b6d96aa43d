/**
 * A backbone by the MSN paper's low-shot evaluation: accuracy on held-out images of clothes for a few labelled ones a
 * class, over several draws, compared with an untrained backbone, raw pixels, and the same network trained on those labels
 * alone, from scratch and from the backbone. A table, the numbers as JSON, and a plot.
 */
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import type { RawImage } from "../ts/image/raw_image.ts";
import { center_and_normalize } from "../ts/learning/features.ts";
import type { FitOptions } from "../ts/learning/fit_options.ts";
import { type ViTMSNForImageClassification, ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { Trainer } from "../ts/training/trainer.ts";
import {
  class_config,
  classifier_on,
  fresh_backbone,
  fresh_fashion_model,
  labelled,
  mirrored_batches,
} from "./support/fashion.ts";
import { read_fashion_images } from "./support/fashion_images.ts";
import {
  draw_images,
  type Embed,
  embed_by,
  embed_draw,
  head_accuracy,
  moments,
  show_spread,
} from "./support/few_shot.ts";
import { line_chart } from "./support/line_chart.ts";
import { machine, print, type Row, table } from "./support/report.ts";

/** What is compared, in the table's order. */
const METHODS = {
  backbone: "this backbone's CLS + logistic regression",
  cls_mean: "this backbone's CLS and mean of patches + logistic regression",
  untrained: "untrained backbone + logistic regression",
  pixels: "raw pixels + logistic regression",
  scratch: "trained from scratch",
  fine_tuned: "fine-tuned from this backbone",
} as const;
type Method = keyof typeof METHODS;
const NAMES = Object.keys(METHODS) as Method[];

const HELP = `Usage: node bench/run.mjs low_shot --backbone DIR [OPTIONS]

  --backbone DIR      a folder that ViTMSNModel.from_pretrained opens; a classifier in it is not used
  --shots LIST        labelled images per class; default 1,2,5,20,65 (1 %)
  --draws N           default 20
  --penalty NAME      λ of logistic regressions: auto (by cross-validation, few for one image a class; default), paper
                      (few up to 5 images a class, else percent), or a number
  --split NAME        evaluate on the test images (default), or on validation images, to choose features and recipes by
  --methods LIST      of ${NAMES.join(", ")}; default all
  --training-draws N  draws for training from scratch and fine-tuning; default 3
  --steps N           optimiser steps of those; default 100
  --held-out N        images per class to evaluate on; default 500, all that are held out
  --threads N         default 1
  --output DIR        low_shot.json, low_shot.md and low_shot.svg; default .out/low_shot. Methods that the JSON there
                      already has and that aren't measured now stay in it: delete it for another backbone
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    backbone: { type: "string" },
    shots: { type: "string", default: "1,2,5,20,65" },
    draws: { type: "string", default: "20" },
    penalty: { type: "string", default: "auto" },
    split: { type: "string", default: "test" },
    methods: { type: "string", default: NAMES.join() },
    "training-draws": { type: "string", default: "3" },
    steps: { type: "string", default: "100" },
    "held-out": { type: "string", default: "500" },
    threads: { type: "string", default: "1" },
    output: { type: "string", default: ".out/low_shot" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** Accuracies of a method, draw by draw. */
interface Result {
  method: Method;
  shots: number;
  accuracies: number[];
}

/** What every method is measured on. */
interface Task {
  backbone: string;
  shots: number[];
  /** By draw and class, up to the largest number of shots. */
  draws: RawImage[][][];
  /** By class. */
  test: RawImage[][];
}

const device = { device: "wasm", num_threads: Number(options.threads) } as const;

/** Logistic regression, as the few-shot pipeline fits it, on what `embed` makes of images. */
async function by_head(method: Method, { shots, draws, test }: Task, embed: Embed): Promise<Result[]> {
  const held_out: Float32Array[][] = [];
  for (const images of test) held_out.push(await embed(images));
  const results: Result[] = shots.map((shots) => ({ method, shots, accuracies: [] }));
  for (const drawn of draws) {
    const classes = await embed_draw(drawn, embed);
    for (const { shots, accuracies } of results) {
      const examples = classes.flatMap((list) => list.slice(0, shots));
      accuracies.push(await head_accuracy(examples, held_out, fit_options(shots)));
    }
  }
  return results;
}

/** By --penalty. */
function fit_options(shots: number): FitOptions {
  switch (options.penalty) {
    case "auto":
      return {};
    case "paper":
      return { penalty: shots <= 5 ? "few" : "percent" };
    default:
      return { penalty: Number(options.penalty) };
  }
}

async function by_backbone(method: Method, task: Task, model: ViTMSNModel): Promise<Result[]> {
  const processor = await ViTImageProcessor.from_pretrained(task.backbone);
  try {
    return await by_head(
      method,
      task,
      embed_by(model, processor, method === "cls_mean" ? "cls_mean" : "cls_before_norm"),
    );
  } finally {
    await model.dispose();
  }
}

/** All parameters learn from the labelled images, mirrored at random. */
async function by_training(
  method: Method,
  { shots, draws, test }: Task,
  learning_rate: number,
  make_model: (seed: number) => Promise<ViTMSNForImageClassification>,
): Promise<Result[]> {
  const results: Result[] = shots.map((shots) => ({ method, shots, accuracies: [] }));
  for (const [seed, drawn] of draws.slice(0, Number(options["training-draws"])).entries()) {
    for (const { shots, accuracies } of results) {
      const model = await make_model(seed);
      const train_dataset = labelled(drawn.map((images) => images.slice(0, shots)));
      const trainer = new Trainer({
        model,
        train_dataset,
        data_collator: mirrored_batches,
        args: {
          max_steps: Number(options.steps),
          per_device_train_batch_size: Math.min(32, train_dataset.length as number),
          per_device_eval_batch_size: 100,
          learning_rate,
          weight_decay: 0.05,
          lr_scheduler_type: "one_cycle",
          warmup_ratio: 0.1,
          seed,
        },
      });
      await trainer.train();
      const { metrics } = await trainer.predict(labelled(test));
      accuracies.push(metrics.test_accuracy as number);
      console.error(`${method}, ${shots} a class, draw ${seed}: ${show_spread(accuracies.slice(-1))}`);
      await model.dispose();
    }
  }
  return results;
}

/** A folder with the backbone alone, so that a classifier on it is a fresh one. */
async function without_classifier(backbone: string): Promise<string> {
  const folder = `${options.output}/backbone`;
  const model = await ViTMSNModel.from_pretrained(backbone, device);
  await model.save_pretrained(folder);
  await model.dispose();
  return folder;
}

async function measure(method: Method, task: Task): Promise<Result[]> {
  const open = () => ViTMSNModel.from_pretrained(task.backbone, device);
  const config = await class_config(task.backbone, task.test.length);
  switch (method) {
    case "backbone":
    case "cls_mean":
      return by_backbone(method, task, await open());
    case "untrained":
      return by_backbone(method, task, await fresh_backbone(config, 0, device));
    case "pixels":
      return by_head(method, task, async (images) =>
        images.map(({ data }) => center_and_normalize(Float32Array.from(data))),
      );
    case "scratch":
      return by_training(method, task, 1e-3, (seed) => fresh_fashion_model(config, seed, device));
    case "fine_tuned": {
      const folder = await without_classifier(task.backbone);
      return by_training(method, task, 3e-4, (seed) =>
        classifier_on(folder, task.test.length, { ...device, seed }),
      );
    }
  }
}

/** One row a method, one column a number of shots. */
function rows_of(results: readonly Result[], shots: readonly number[]): Row[] {
  return methods_of(results).map((method) => {
    const found = results.filter((result) => result.method === method);
    const cells = shots.map((count): [string, string] => {
      const accuracies = found.find(({ shots }) => shots === count)?.accuracies;
      return [`${count} a class`, accuracies ? show_spread(accuracies) : ""];
    });
    return { method: METHODS[method], ...Object.fromEntries(cells), draws: found[0]?.accuracies.length ?? 0 };
  });
}

function methods_of(results: readonly Result[]): Method[] {
  return NAMES.filter((name) => results.some(({ method }) => method === name));
}

function plot(results: readonly Result[], shots: readonly number[]): string {
  return line_chart({
    title: "Accuracy on held-out images by labelled ones",
    x_label: "labelled images per class",
    y_label: "accuracy, %",
    x_ticks: shots,
    lines: methods_of(results).map((method) => ({
      name: METHODS[method],
      points: results
        .filter((result) => result.method === method)
        .map(({ shots, accuracies }) => {
          const { mean, deviation } = moments(accuracies);
          return { x: shots, y: 100 * mean, spread: 100 * deviation };
        }),
    })),
  });
}

/** What an earlier call measured of other methods. */
async function read_results(file: string, methods: readonly Method[]): Promise<Result[]> {
  if (!existsSync(file)) return [];
  const before = JSON.parse(await readFile(file, "utf8")) as Result[];
  return before.filter(({ method }) => !methods.includes(method));
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const { backbone, output } = options;
  if (backbone === undefined) throw new Error("low_shot needs --backbone DIR; --help shows the options.");
  const methods = options.methods.split(",") as Method[];
  const unknown = methods.find((method) => !NAMES.includes(method));
  if (unknown !== undefined) throw new Error(`--methods has ${unknown}; known are ${NAMES.join(", ")}.`);
  const shots = options.shots.split(",").map(Number);
  const { train, test } = read_fashion_images(options.split === "validation");
  const task: Task = {
    backbone,
    shots,
    draws: draw_images(train, Math.max(...shots), Number(options.draws)),
    test: test.map((images) => images.slice(0, Number(options["held-out"]))),
  };
  await mkdir(output, { recursive: true });
  const where = machine();
  const results = await read_results(`${output}/low_shot.json`, methods);
  for (const method of methods) {
    results.push(...(await measure(method, task)));
    await writeFile(`${output}/low_shot.json`, `${JSON.stringify(results, null, 1)}\n`);
  }
  const counts = [...new Set(results.map(({ shots }) => shots))].sort((a, b) => a - b);
  const rows = rows_of(results, counts);
  await writeFile(`${output}/low_shot.md`, `${table(rows)}\n`);
  await writeFile(`${output}/low_shot.svg`, plot(results, counts));
  const title = `Low-shot accuracy on ${task.test.flat().length} held-out images, ${backbone}: mean and standard deviation over draws, %`;
  print(title, where, rows, options.json);
}

await main();
