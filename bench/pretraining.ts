/**
 * A step of MSN's pre-training: where its time goes, how it falls with the patches that random anchors drop, and what making
 * the views takes.
 */
import { parseArgs } from "node:util";
import { ViTImageProcessor } from "../ts/image/image_processing_vit.ts";
import { RawImage } from "../ts/image/raw_image.ts";
import { MSNPretrainingArguments } from "../ts/training/msn/msn_arguments.ts";
import { msn_encoder } from "../ts/training/msn/msn_encoder.ts";
import { MSNLearner, type MSNStepTimes } from "../ts/training/msn/msn_learner.ts";
import { type MSNViews, msn_view_collator } from "../ts/training/msn/msn_views.ts";
import { Random } from "../ts/training/random.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { time } from "./support/timing.ts";
import { SIZES } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs pretraining [OPTIONS]

  --size clothes|small   28×28 images, six layers of 128; or ViT-S/16. Default clothes
  --batch N              images in a step; default 64 (small: 4)
  --focal-views N        default 4
  --num-proto N          default 256
  --rounds N             measured rounds, each over all shares of patches; default 5
  --threads N            threads of the engine; default 1
  --cpu-time             measure processor time instead of elapsed time: for one thread on a busy machine
  --json                 print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string", default: "clothes" },
    batch: { type: "string" },
    "focal-views": { type: "string", default: "4" },
    "num-proto": { type: "string", default: "256" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: "1" },
    "cpu-time": { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const CLOTHES = {
  hidden_size: 128,
  num_hidden_layers: 6,
  num_attention_heads: 4,
  intermediate_size: 384,
  image_size: 28,
  patch_size: 4,
};
/** Shares of the patches that random anchors lose. MSN's ViT-S drops 0.15, its ViT-B 0.3 and its ViT-L 0.7. */
const DROPS = [0, 0.15, 0.3, 0.5, 0.7] as const;

const is_small = options.size === "small";
const config = is_small ? SIZES.small : CLOTHES;
const [hidden_dim, output_dim] = is_small ? [2048, 256] : [512, 128];
const batch = Number(options.batch ?? (is_small ? 4 : 64));

interface Case {
  drop: number;
  learner: MSNLearner;
  best: MSNStepTimes | undefined;
}

const sum = (times: MSNStepTimes) => Object.values(times).reduce((a, b) => a + b, 0);
const step_args = (patch_drop: number) =>
  new MSNPretrainingArguments({
    patch_drop,
    hidden_dim,
    output_dim,
    num_proto: Number(options["num-proto"]),
    focal_views: Number(options["focal-views"]),
    per_device_train_batch_size: batch,
  });

/** Views of noisy images of the model's size, and how long each image took. */
async function make_views(model: Awaited<ReturnType<typeof msn_encoder>>) {
  const side = model.config.image_grid.height;
  const image = (i: number) => {
    const random = new Random(7, i);
    const bytes = Uint8Array.from({ length: side * side * (is_small ? 3 : 1) }, () => random.integer(256));
    return new RawImage(bytes, side, side, is_small ? 3 : 1);
  };
  const drawn = Array.from({ length: batch }, (_, index) => ({ example: { image: image(index) }, index }));
  const collate = msn_view_collator({
    args: step_args(0),
    config: model.config,
    processor: new ViTImageProcessor({ image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] }),
  });
  let views: MSNViews | undefined;
  const times: number[] = [];
  for (let round = 0; round < 4; round++) {
    const own = drawn.map((one) => ({ ...one, random: new Random(1, round, one.index) }));
    times.push(
      await time(async () => {
        views = await collate(own, { is_training: true, random: new Random(1) });
      }),
    );
  }
  return { views: views as MSNViews, ms: Math.min(...times) };
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  if (options["cpu-time"]) {
    performance.now = () => {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1000;
    };
  }
  const rounds = Number(options.rounds);
  const model_options = { device: "wasm", num_threads: Number(options.threads) } as const;
  const cases: Case[] = [];
  for (const drop of DROPS) {
    const model = await msn_encoder(config, model_options);
    cases.push({ drop, learner: await MSNLearner.create(model, step_args(drop)), best: undefined });
  }
  const { views, ms: views_ms } = await make_views((cases[0] as Case).learner.online.encoder);
  const schedule = { total: 1000, warmup: 100 };
  for (let round = -1; round < rounds; round++) {
    for (const one of cases) {
      const { times } = await one.learner.step(views, round + 1, schedule, undefined);
      if (round >= 0 && (one.best === undefined || sum(times) < sum(one.best))) one.best = times;
    }
  }
  const whole = (cases[0] as Case).best as MSNStepTimes;
  const rows = cases.map(({ drop, best }): Row => {
    const times = best as MSNStepTimes;
    const masked = (part: "anchors" | "backward") => round((100 * times[part]) / whole[part]);
    return {
      "visible patches, %": round(100 * (1 - drop), 0),
      "step, ms": round(sum(times)),
      target: round(times.target),
      "anchors forward": round(times.anchors),
      loss: round(times.loss),
      backward: round(times.backward),
      update: round(times.update),
      "anchors of all patches', %": masked("anchors"),
      "backward of all patches', %": masked("backward"),
      "views, ms": round(views_ms),
    };
  });
  const what = `${options.size}, batch ${batch}, 1 random and ${options["focal-views"]} focal anchors, ${options["num-proto"]} prototypes`;
  print(
    `A step of pre-training (${what}), ${options.threads} thread(s); best of ${rounds}`,
    where,
    rows,
    options.json,
  );
  for (const { learner } of cases) {
    await learner.dispose();
    await learner.online.encoder.dispose();
  }
}

await main();
