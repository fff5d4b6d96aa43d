/**
 * Few-shot learning as the MSN paper evaluates it: accuracy on held-out images for a few labelled ones a class, over
 * several draws, compared with scikit-learn's logistic regression on the same features; and how long a fit takes.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import { center_and_normalize, type Example, type FeatureKind } from "../ts/learning/features.ts";
import { fit_head } from "../ts/learning/fit.ts";
import { type FitOptions, plan_fit } from "../ts/learning/fit_options.ts";
import { MSN_PENALTIES } from "../ts/learning/penalties.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { normal_values } from "../ts/model/random.ts";
import { fresh_backbone } from "./support/fashion.ts";
import { read_fashion_images } from "./support/fashion_images.ts";
import {
  draw_images,
  type Embed,
  embed_by,
  embed_draw,
  head_accuracy,
  show_spread,
} from "./support/few_shot.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { time } from "./support/timing.ts";

const HELP = `Usage: node bench/run.mjs few_shot [OPTIONS]

  --model DIR       backbone; default models/fashion, which has seen the images' labels
  --untrained       the same architecture with random weights
  --features NAME   cls_before_norm (default), cls, mean, mean_before_norm, cls_mean
  --shots LIST      labelled images per class; default 1,5,20
  --draws N         default 20
  --python FILE     Python interpreter with numpy and scikit-learn to compare with
  --speed           measure only how long a fit takes
  --json            print JSON`;

const { values: options } = parseArgs({
  options: {
    model: { type: "string", default: "models/fashion" },
    untrained: { type: "boolean", default: false },
    features: { type: "string", default: "cls_before_norm" },
    shots: { type: "string", default: "1,5,20" },
    draws: { type: "string", default: "20" },
    python: { type: "string" },
    speed: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const CLASSES = 10;

async function load_backbone(): Promise<{ embed: Embed; model: ViTMSNModel }> {
  const processor = await ViTImageProcessor.from_pretrained(options.model);
  const trained = await ViTMSNModel.from_pretrained(options.model);
  const model = options.untrained ? await fresh(trained) : trained;
  return { embed: embed_by(model, processor, options.features as FeatureKind), model };
}

/** The architecture with random weights. */
async function fresh(trained: ViTMSNModel): Promise<ViTMSNModel> {
  await trained.dispose();
  return fresh_backbone(trained.config, 0, {});
}

const METHODS: readonly [name: string, options: FitOptions, least_shots: number][] = [
  ["logistic regression", { penalty: "few" }, 1],
  ['logistic regression, penalty "auto"', { penalty: "auto" }, 2],
  ["nearest centroid", { method: "nearest_centroid" }, 1],
  ["k-NN", { method: "knn" }, 1],
];

async function measure_accuracy(): Promise<Row[]> {
  const { embed, model } = await load_backbone();
  const { train, test } = read_fashion_images();
  const held_out: Float32Array[][] = [];
  for (const images of test) held_out.push(await embed(images));
  const all_shots = options.shots.split(",").map(Number);
  const draws: Example[][][] = [];
  for (const images of draw_images(train, Math.max(...all_shots), Number(options.draws)))
    draws.push(await embed_draw(images, embed));
  await model.dispose();
  const rows: Row[] = [];
  for (const shots of all_shots) {
    const drawn = draws.map((classes) => classes.flatMap((list) => list.slice(0, shots)));
    for (const [name, fit, least_shots] of METHODS) {
      if (shots < least_shots) continue;
      const found: number[] = [];
      for (const examples of drawn) found.push(await head_accuracy(examples, held_out, fit));
      const is_plain = name === "logistic regression";
      const peer = is_plain && options.python ? scikit_learn(options.python, drawn, held_out) : undefined;
      rows.push({
        "images per class": shots,
        method: name,
        "accuracy, %": show_spread(found),
        "scikit-learn, %": peer ? show_spread(peer) : "",
        "largest difference in a draw, points": peer
          ? round(100 * Math.max(...found.map((x, i) => Math.abs(x - (peer[i] as number)))), 3)
          : "",
      });
    }
  }
  return rows;
}

/** Accuracies of scikit-learn's LogisticRegression with C = 1/λ on the same features, draw by draw. */
function scikit_learn(python: string, drawn: readonly Example[][], test: Float32Array[][]): number[] {
  const folder = ".out/bench/few_shot";
  mkdirSync(folder, { recursive: true });
  const write = (name: string, features: readonly Float32Array[]) =>
    writeFileSync(
      `${folder}/${name}.f32`,
      Buffer.concat(features.map((f) => Buffer.from(f.buffer, f.byteOffset, f.byteLength))),
    );
  write(
    "train",
    drawn.flatMap((examples) => examples.map(({ feature }) => feature)),
  );
  write("test", test.flat());
  const size = test[0]?.[0]?.length as number;
  const shots = (drawn[0]?.length as number) / CLASSES;
  const penalty = MSN_PENALTIES.few;
  const args = [
    "bench/few_shot_sklearn.py",
    folder,
    ...[size, CLASSES, shots, drawn.length, penalty].map(String),
  ];
  return JSON.parse(execFileSync(python, args, { encoding: "utf8" }));
}

/** How long a fit takes: features of clusters with a decaying spectrum, as networks give them. */
async function measure_speed(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const [count, size, penalty] of [
    [1000, 384, 0.0025],
    [1000, 384, 0.075],
    [1000, 768, 0.075],
    [50, 384, 0.0025],
  ] as const) {
    const examples = clusters(count, size);
    const times: number[] = [];
    const cpu: number[] = [];
    for (let rounds = 0; rounds < 5; rounds++) {
      const before = process.cpuUsage();
      times.push(await time(() => fit_head(examples, plan_fit({ penalty }), {})));
      const { user, system } = process.cpuUsage(before);
      cpu.push((user + system) / 1000);
    }
    const { report } = await fit_head(examples, plan_fit({ penalty }), {});
    rows.push({
      images: count,
      classes: CLASSES,
      features: size,
      penalty,
      "Newton steps": report.iterations as number,
      "best of 5, ms": round(Math.min(...times), 0),
      "of it on a core, ms": round(Math.min(...cpu), 0),
    });
  }
  return rows;
}

function clusters(count: number, size: number): Example[] {
  const scale = (k: number) => (k + 1) ** -0.7;
  const noise = normal_values(0, "noise", 0, count * size, 1);
  const centres = normal_values(0, "centres", 0, (CLASSES + 1) * size, 1);
  return Array.from({ length: count }, (_, id) => {
    const kind = id % CLASSES;
    const feature = Float32Array.from({ length: size }, (_, k) => {
      const shared = 2 * (centres[CLASSES * size + k] as number);
      return (
        scale(k) * ((noise[id * size + k] as number) + 0.5 * (centres[kind * size + k] as number) + shared)
      );
    });
    return { id, label: String(kind), feature: center_and_normalize(feature) };
  });
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  if (!options.speed) {
    const what = `${options.untrained ? "untrained " : ""}${options.model}, ${options.features}`;
    const title = `Few-shot accuracy on 5,000 held-out images of clothes, ${what}; mean and standard deviation of ${options.draws} draws`;
    print(title, where, await measure_accuracy(), options.json);
  }
  print("Fitting, logistic regression to a gradient of 1e-6", where, await measure_speed(), options.json);
}

await main();
