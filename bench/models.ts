/**
 * The five released architectures from generated weights: parameters, tokens, memory, and the time of an image, for
 * each dtype.
 */

import { parseArgs } from "node:util";
import type { WeightDtype } from "../ts/dtypes.ts";
import type { Device } from "../ts/engine/engine_options.ts";
import { backbone_modules, parameters_of } from "../ts/model/architecture.ts";
import { ViTMSNConfig } from "../ts/model/configuration_vit_msn.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { VIT_MSN_PRESETS, type ViTMSNPreset } from "../ts/model/presets.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { processor_clock, time } from "./support/timing.ts";
import { images } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs models [OPTIONS]

  --model NAME             one preset, such as vit-msn-base-4; default all five
  --dtype NAME             float32, float16, bfloat16 or int8; default float32, float16 and int8
  --device wasm|webgpu     default wasm
  --threads N              default 2
  --rounds N               measured forward passes of one image each; default 3
  --processor-time         measure processor time instead of elapsed time: for one thread on a busy machine
  --json                   print JSON`;

const { values: options } = parseArgs({
  options: {
    model: { type: "string" },
    dtype: { type: "string" },
    device: { type: "string", default: "wasm" },
    threads: { type: "string", default: "2" },
    rounds: { type: "string", default: "3" },
    "processor-time": { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const megabytes = (bytes: number) => Math.round(bytes / 1e6);

/** Every model lives alone: its weights are made on the engine, chunk by chunk, and are gone before the next one's. */
async function measure(preset: ViTMSNPreset, dtype: WeightDtype): Promise<Row> {
  const config = ViTMSNConfig.preset(preset);
  const { patches } = config;
  const parameters = backbone_modules(config, false)
    .flatMap(parameters_of)
    .reduce((sum, { dims }) => sum + dims.reduce((a, b) => a * b, 1), 0);
  const model = await ViTMSNModel.from_config(config, {
    device: options.device as Device,
    dtype,
    num_threads: Number(options.threads),
  });
  try {
    const weights = model.memory().bytes;
    const pixel_values = images(1);
    const clock = options["processor-time"] ? processor_clock : undefined;
    const times: number[] = [];
    let sound = true;
    // The first warms up.
    for (let counted = -1; counted < Number(options.rounds); counted++) {
      const ms = await time(async () => {
        const { data } = await model.get_image_features({ pixel_values });
        sound &&= data.every(Number.isFinite);
      }, clock);
      if (counted >= 0) times.push(ms);
    }
    if (!sound) throw new Error(`${preset} in ${dtype} gave numbers that aren't finite.`);
    return {
      model: preset,
      dtype,
      "parameters, M": round(parameters / 1e6),
      tokens: 1 + patches.height * patches.width,
      "weights, MB": megabytes(weights),
      "memory in all, MB": megabytes(model.memory().reserved),
      "ms per image": Math.round(Math.min(...times)),
    };
  } finally {
    await model.dispose();
  }
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  for (const preset of options.model === undefined ? VIT_MSN_PRESETS : [options.model as ViTMSNPreset]) {
    for (const dtype of options.dtype === undefined ? ["float32", "float16", "int8"] : [options.dtype]) {
      rows.push(await measure(preset, dtype as WeightDtype));
    }
  }
  print(
    `The released architectures from generated weights, one image of 224×224, ${options.device}, threads: ${options.threads}; best rounds${options["processor-time"] ? ", processor time" : ""}`,
    where,
    rows,
    options.json,
  );
}

await main();
