/**
 * A step of fine-tuning, all parameters by AdamW, compared with a forward pass of the same batch; both in turn in one process. What
 * memory that WebAssembly took for it is printed too.
 */
import { parseArgs } from "node:util";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { Tensor } from "../ts/tensor.ts";
import { Learner } from "../ts/training/learner.ts";
import { TrainingArguments } from "../ts/training/training_arguments.ts";
import { open_tfjs_training, type TfBackend } from "./peers/tfjs.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { median, time } from "./support/timing.ts";
import { chosen_sizes, images, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs training [OPTIONS]

  --size small|base   one architecture; default both
  --batch N           images in a step; default 8
  --layers N          only the encoder's first N layers; default all
  --rounds N          measured steps and forwards; default 8
  --threads N         threads of the engine; default 1
  --tfjs wasm|cpu     compare with TensorFlow.js' forward and its step by Adam on that backend, all in turn
  --peers-dir DIR     folder whose node_modules has TensorFlow.js; default this repository
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    batch: { type: "string", default: "8" },
    layers: { type: "string" },
    rounds: { type: "string", default: "8" },
    threads: { type: "string", default: "1" },
    tfjs: { type: "string" },
    "peers-dir": { type: "string", default: "." },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const batch = Number(options.batch);
const rounds = Number(options.rounds);
const learning_rate = 1e-5;

function open_model(size: Size): Promise<ViTMSNForImageClassification> {
  const layers = options.layers === undefined ? {} : { num_hidden_layers: Number(options.layers) };
  return ViTMSNForImageClassification.from_config(
    { ...SIZES[size], ...layers },
    { device: "wasm", num_threads: Number(options.threads) },
  );
}

/** What a step computes on. */
const classes = Array.from({ length: batch }, (_, i) => i);
const labels = new Tensor("int64", BigInt64Array.from(classes, BigInt), [batch]);

async function measure(size: Size, gradient_checkpointing: boolean): Promise<Row> {
  const model = await open_model(size);
  const pixel_values = images(batch);
  const args = new TrainingArguments({ gradient_checkpointing, learning_rate });
  const learner = new Learner(model, args, 1000);
  const forwards: number[] = [];
  const steps: number[] = [];
  for (let round = -2; round < rounds; round++) {
    const forward = await time(() => model.forward({ pixel_values }));
    const step = await time(() => learner.step([{ pixel_values, labels }], round + 2, undefined));
    if (round < 0) continue; // V8 still replaces its baseline code of WebAssembly
    forwards.push(forward);
    steps.push(step);
  }
  const { reserved } = model.engine.memory();
  const row = {
    model: size,
    activations: gradient_checkpointing ? "recomputed" : "stored",
    ...summary(forwards, steps),
    "MB reserved": round(reserved / 1e6, 0),
  };
  await learner.dispose();
  await model.dispose();
  return row;
}

function summary(forwards: readonly number[], steps: readonly number[]): Row {
  const [forward, step] = [Math.min(...forwards), Math.min(...steps)];
  return {
    "forward, ms": round(forward),
    "step, ms": round(step),
    "step / forward": round(step / forward, 2),
    "the same, medians": round(median(steps) / median(forwards), 2),
  };
}

/** Both learn the same model on the same batch; their first losses must be the same. */
async function beside_tfjs(size: Size, backend: TfBackend): Promise<Row[]> {
  const model = await open_model(size);
  const peer = await open_tfjs_training(model, options["peers-dir"], backend, learning_rate);
  const pixel_values = images(batch);
  const learner = new Learner(model, new TrainingArguments({ learning_rate }), 1000);
  const loss = (await model.forward({ pixel_values, labels })).loss?.data[0] as number;
  const peer_loss = await peer.step(pixel_values, classes);
  if (!(Math.abs(loss - peer_loss) <= 1e-3 * loss))
    throw new Error(`${size}: the losses are ${loss} and ${peer_loss}.`);
  const [ours, theirs] = [[[], []] as [number[], number[]], [[], []] as [number[], number[]]];
  for (let round = -1; round < rounds; round++) {
    const times = [
      await time(() => model.forward({ pixel_values })),
      await time(() => learner.step([{ pixel_values, labels }], round + 1, undefined)),
      await time(() => peer.forward(pixel_values)),
      await time(() => peer.step(pixel_values, classes)),
    ] as const;
    if (round < 0) continue;
    ours[0].push(times[0]);
    ours[1].push(times[1]);
    theirs[0].push(times[2]);
    theirs[1].push(times[3]);
  }
  const ratio = round(Math.min(...ours[1]) / Math.min(...theirs[1]), 3);
  peer.dispose();
  await learner.dispose();
  await model.dispose();
  return [
    { model: size, of: "vit-msn, AdamW", ...summary(...ours), "step beside theirs": ratio },
    { model: size, of: `tfjs ${backend}, Adam`, ...summary(...theirs), "step beside theirs": 1 },
  ];
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  const backend = options.tfjs;
  if (backend !== undefined && backend !== "wasm" && backend !== "cpu")
    throw new Error("--tfjs is wasm or cpu.");
  for (const size of chosen_sizes(options.size)) {
    if (backend !== undefined) rows.push(...(await beside_tfjs(size, backend)));
    else for (const checkpointing of [false, true]) rows.push(await measure(size, checkpointing));
  }
  const title = `A step of fine-tuning beside a forward, batch ${options.batch}, ${options.threads} thread(s); best of ${options.rounds}`;
  print(title, where, rows, options.json);
}

await main();
