/**
 * A step of fine-tuning, all parameters by AdamW, beside a forward of the same batch; both in turn in one process. What
 * memory WebAssembly took for it is told too.
 */
import { parseArgs } from "node:util";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { Tensor } from "../ts/tensor.ts";
import { Learner } from "../ts/training/learner.ts";
import { TrainingArguments } from "../ts/training/training_arguments.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { median, time } from "./support/timing.ts";
import { chosen_sizes, pictures, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs training [OPTIONS]

  --size small|base   one architecture; default both
  --batch N           pictures in a step; default 8
  --rounds N          counted steps and forwards; default 8
  --threads N         threads of the engine; default 1
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    batch: { type: "string", default: "8" },
    rounds: { type: "string", default: "8" },
    threads: { type: "string", default: "1" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

async function measure(size: Size, gradient_checkpointing: boolean): Promise<Row> {
  const model = await ViTMSNForImageClassification.from_config(SIZES[size], {
    device: "wasm",
    num_threads: Number(options.threads),
  });
  const batch = Number(options.batch);
  const rounds = Number(options.rounds);
  const pixel_values = pictures(batch);
  const labels = new Tensor(
    "int64",
    BigInt64Array.from({ length: batch }, (_, i) => BigInt(i)),
    [batch],
  );
  const args = new TrainingArguments({ gradient_checkpointing, learning_rate: 1e-5 });
  const learner = new Learner(model, args, 1000);
  const forwards: number[] = [];
  const steps: number[] = [];
  for (let round = -2; round < rounds; round++) {
    const forward = await time(() => model.forward({ pixel_values }));
    const step = await time(() => learner.step([{ pixel_values, labels }], round + 2, undefined));
    if (round < 0) continue; // V8 swaps its baseline code of WebAssembly meanwhile
    forwards.push(forward);
    steps.push(step);
  }
  const [forward, step] = [Math.min(...forwards), Math.min(...steps)];
  const { reserved } = model.engine.memory();
  const row = {
    model: size,
    activations: gradient_checkpointing ? "computed again" : "kept",
    "forward, ms": round(forward),
    "step, ms": round(step),
    "step / forward": round(step / forward, 2),
    "the same, medians": round(median(steps) / median(forwards), 2),
    "MB reserved": round(reserved / 1e6, 0),
  };
  await learner.dispose();
  await model.dispose();
  return row;
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  for (const size of chosen_sizes(options.size)) {
    for (const checkpointing of [false, true]) rows.push(await measure(size, checkpointing));
  }
  const title = `A step of fine-tuning beside a forward, batch ${options.batch}, ${options.threads} thread(s); best of ${options.rounds}`;
  print(title, where, rows, options.json);
}

await main();
