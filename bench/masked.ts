/**
 * A forward pass over a share of the patches (`visible_patches`): how its time falls with the share.
 */
import { parseArgs } from "node:util";
import { ViTMSNConfig } from "../ts/model/configuration_vit_msn.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { time } from "./support/timing.ts";
import { chosen_sizes, images, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs masked [OPTIONS]

  --size small|base   one architecture; default both
  --batch N           images in a forward pass; default 1
  --rounds N          measured rounds, each over all shares; default 7
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    batch: { type: "string", default: "1" },
    rounds: { type: "string", default: "7" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** Percent of the patches that stay. MSN's ViT-S drops 15 %, its ViT-B 30 % and its ViT-L 70 %. */
const SHARES = [100, 85, 70, 50, 30] as const;

/** Patches scattered over the image. */
function scattered(count: number, visible: number): number[] {
  return Array.from({ length: visible }, (_, i) => Math.floor((i * count) / visible));
}

async function measure(size: Size, batch: number, rounds: number): Promise<Row[]> {
  const { patches } = new ViTMSNConfig(SIZES[size]);
  const count = patches.height * patches.width;
  const model = await ViTMSNModel.from_config(SIZES[size], { device: "wasm" });
  const pixel_values = images(batch);
  const cases = SHARES.map((share) => ({
    share,
    visible_patches: share === 100 ? undefined : scattered(count, Math.round((share * count) / 100)),
    times: [] as number[],
  }));
  for (let counted = -1; counted < rounds; counted++) {
    for (const { visible_patches, times } of cases) {
      const ms = await time(() => model.get_image_features({ pixel_values, visible_patches }));
      if (counted >= 0) times.push(ms);
    }
  }
  await model.dispose();
  const whole = Math.min(...(cases[0]?.times ?? []));
  return cases.map(({ share, visible_patches, times }) => ({
    model: size,
    batch,
    "visible patches, %": share,
    patches: visible_patches?.length ?? count,
    ms: round(Math.min(...times)),
    "of all patches' time, %": round((100 * Math.min(...times)) / whole),
  }));
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  for (const size of chosen_sizes(options.size)) {
    rows.push(...(await measure(size, Number(options.batch), Number(options.rounds))));
  }
  print(
    "A forward over some of the patches, 224×224, float32, one thread; best rounds",
    where,
    rows,
    options.json,
  );
}

await main();
