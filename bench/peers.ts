/**
 * ViT-MSN end to end compared with another runtime: float32, 224×224, both in this process and in turn.
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { WEIGHT_DTYPES, type WeightDtype } from "../ts/dtypes.ts";
import { env } from "../ts/env.ts";
import { ViTMSNForImageClassification } from "../ts/model/modeling_vit_msn.ts";
import { to_onnx } from "./onnx/vit_msn.ts";
import { open_onnxruntime_web } from "./peers/onnxruntime_web.ts";
import type { OpenPeer } from "./peers/peer.ts";
import { open_tfjs } from "./peers/tfjs.ts";
import { open_transformers_js } from "./peers/transformers_js.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { alternate, median, processor_clock } from "./support/timing.ts";
import { chosen_sizes, images, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs peers [OPTIONS]

  --peer NAME         onnxruntime-web (default), transformers.js or tfjs
  --peers-dir DIR     the folder whose node_modules has transformers.js or tfjs; default this repository
  --size small|base   one architecture; default both
  --batch N           images in a forward pass; default 1
  --threads N         threads of each runtime; default 1
  --dtype NAME        type of our weights, such as int8; default float32. The peer's are float32, or what --onnx has
  --rounds N          measured rounds; default 15
  --wide              V8's 256-bit vectors for us, turned on when the peer is warm; to give the peer the same, start
                      node with --experimental-wasm-revectorize instead
  --processor-time    measure this process's processor time, for a busy machine; one thread only
  --model DIR         a checkpoint's folder, with --onnx: the same model as ONNX (bench/export_onnx.py writes it).
  --onnx FILE         Default: random weights, and ONNX written from them (bench/onnx/vit_msn.ts).
  --json              print JSON`;

/** Largest difference of the two runtimes' logits: in float32, and where rounded weights make one. */
const TOLERANCE = 1e-3;
const ROUNDED_TOLERANCE = 0.2;

const PEERS: Readonly<Record<string, OpenPeer>> = {
  "onnxruntime-web": open_onnxruntime_web,
  "transformers.js": open_transformers_js,
  tfjs: open_tfjs,
};

const { values: options } = parseArgs({
  options: {
    peer: { type: "string", default: "onnxruntime-web" },
    "peers-dir": { type: "string", default: "." },
    size: { type: "string" },
    batch: { type: "string", default: "1" },
    threads: { type: "string", default: "1" },
    dtype: { type: "string", default: "float32" },
    rounds: { type: "string", default: "15" },
    wide: { type: "boolean", default: false },
    "processor-time": { type: "boolean", default: false },
    model: { type: "string" },
    onnx: { type: "string" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const num_threads = Number(options.threads);
const dtype = options.dtype as WeightDtype;

interface Pair {
  name: string;
  model: ViTMSNForImageClassification;
  /** The same in float32, for the peer: the model itself, if that is its dtype. */
  exact: ViTMSNForImageClassification;
  onnx: () => Promise<Uint8Array<ArrayBuffer>>;
  /** The same model as `model`, on a new engine. */
  reopen: () => Promise<ViTMSNForImageClassification>;
}

async function open_pair(size: Size): Promise<Pair> {
  const exact = await ViTMSNForImageClassification.from_config(SIZES[size], { device: "wasm", num_threads });
  const onnx = () => to_onnx(exact);
  const options = { device: "wasm", num_threads, dtype } as const;
  const reopen = () => ViTMSNForImageClassification.from_config(SIZES[size], options);
  return { name: size, model: dtype === "float32" ? exact : await reopen(), exact, onnx, reopen };
}

async function open_files(folder: string, onnx: string): Promise<Pair> {
  const options = { device: "wasm", num_threads, local_files_only: true } as const;
  const exact = await ViTMSNForImageClassification.from_pretrained(folder, options);
  const reopen = () => ViTMSNForImageClassification.from_pretrained(folder, { ...options, dtype });
  const model = dtype === "float32" ? exact : await reopen();
  return { name: folder, model, exact, onnx: async () => new Uint8Array(readFileSync(onnx)), reopen };
}

async function compare(pair: Pair, batch: number, rounds: number): Promise<Row> {
  const { name, exact, onnx, reopen } = pair;
  let { model } = pair;
  const peer = await chosen_peer()({ model: exact, onnx, folder: options["peers-dir"], num_threads });
  if (exact !== model) await exact.dispose();
  const { height, width } = model.config.image_grid;
  const pixel_values = images(batch, height, width);
  const theirs = () => peer.run(pixel_values);
  if (options.wide) {
    await warm(theirs);
    await model.dispose();
    env.wide_vectors = true;
    model = await reopen();
  }
  const ours = async () => (await model.forward({ pixel_values })).logits;
  const difference = largest_difference((await ours()).data, await theirs());
  if (!(difference <= (dtype === "float32" ? TOLERANCE : ROUNDED_TOLERANCE)))
    throw new Error(`${name}: the logits differ by ${difference}.`);
  const clock = options["processor-time"] ? processor_clock : undefined;
  const { a, b } = await alternate(ours, theirs, rounds, clock);
  await peer.close();
  await model.dispose();
  return {
    model: name,
    batch,
    engine: model.engine_info.level,
    threads: model.engine_info.threads,
    "vit-msn, ms": round(median(a)),
    [`${options.peer}, ms`]: round(median(b)),
    ratio: round(median(a) / median(b), 3),
    "best of each, ms": `${round(Math.min(...a))} / ${round(Math.min(...b))}`,
    "logits differ by": difference.toExponential(1),
  };
}

/** Runs a peer until V8 has compiled its code for good: V8's flag, which is for the process, would apply to it, too. */
async function warm(theirs: () => Promise<unknown>): Promise<void> {
  for (let round = 0; round < 10; round++) await theirs();
  await sleep(1000);
}

function largest_difference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new Error(`${a.length} logits beside ${b.length}.`);
  return a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - (b[i] as number))), 0);
}

function chosen_peer(): OpenPeer {
  const open = PEERS[options.peer];
  if (open === undefined) throw new Error(`--peer is one of ${Object.keys(PEERS).join(", ")}.`);
  return open;
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  if ((options.model === undefined) !== (options.onnx === undefined))
    throw new Error("--model and --onnx go together.");
  if (!WEIGHT_DTYPES.includes(dtype)) throw new Error(`--dtype is one of ${WEIGHT_DTYPES.join(", ")}.`);
  if (options["processor-time"] && num_threads > 1) throw new Error("--processor-time takes one thread.");
  const where = machine();
  const [batch, rounds] = [Number(options.batch), Number(options.rounds)];
  const rows: Row[] = [];
  if (options.model !== undefined && options.onnx !== undefined) {
    rows.push(await compare(await open_files(options.model, options.onnx), batch, rounds));
  } else {
    for (const size of chosen_sizes(options.size))
      rows.push(await compare(await open_pair(size), batch, rounds));
  }
  const title = `ViT-MSN at 224×224, ${dtype} beside ${options.onnx ?? "the peer's float32"}; medians of a forward`;
  print(title, where, rows, options.json);
}

await main();
