/**
 * Attention by sdpa compared with eager: a whole forward pass, the op alone and the memory of both, over batches and image sizes.
 */
import { parseArgs } from "node:util";
import { create_engine } from "../ts/engine/create_engine.ts";
import { Scope } from "../ts/engine/engine.ts";
import { type AttnImplementation, ViTMSNConfig } from "../ts/model/configuration_vit_msn.ts";
import { ViTMSNModel } from "../ts/model/modeling_vit_msn.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { alternate_for } from "./support/timing.ts";
import { chosen_sizes, images, noise, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs attention [OPTIONS]

  --size small|base   one architecture; default both
  --batch N           one batch size at 224×224; default 1, 2, 4 and 8
  --image N           one image size, batch 1; above 224 positions are interpolated. Default 448 and 896 after the batches
  --ms N              measure each forward pass for so long, in all; default 4000
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    batch: { type: "string" },
    image: { type: "string" },
    ms: { type: "string", default: "4000" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** eager / sdpa by batch that transformers' ViT-MSN page reports: vit-msn-base, float32, an A100. */
const REFERENCE: Readonly<Record<number, number>> = { 1: 1.17, 2: 1.33, 4: 1.33, 8: 1.33 };
const IMPLEMENTATIONS = ["sdpa", "eager"] as const satisfies readonly AttnImplementation[];
const MAX_ROUNDS = 15;

interface Case {
  batch: number;
  image: number;
}

/** Milliseconds of each one's best round, which other load disturbs least: the two differ by a few percent only. */
interface Timing {
  sdpa: number;
  eager: number;
}

async function compare(sdpa: () => unknown, eager: () => unknown): Promise<Timing> {
  const { a, b } = await alternate_for(sdpa, eager, { min_ms: Number(options.ms), max_rounds: MAX_ROUNDS });
  return { sdpa: Math.min(...a), eager: Math.min(...b) };
}

/** A whole forward pass; new models, so that what they have reserved at the end is what this case takes. */
async function forwards(size: Size, { batch, image }: Case) {
  const models = await Promise.all(
    IMPLEMENTATIONS.map((attn_implementation) =>
      ViTMSNModel.from_config(SIZES[size], { device: "wasm", attn_implementation }),
    ),
  );
  const inputs = { pixel_values: images(batch, image, image), interpolate_pos_encoding: true };
  const [sdpa, eager] = models.map((model) => () => model.get_image_features(inputs));
  const timing = await compare(sdpa as () => unknown, eager as () => unknown);
  const reserved = models.map((model) => model.memory().reserved);
  for (const model of models) await model.dispose();
  return { timing, reserved };
}

async function ops(config: ViTMSNConfig, batch: number, tokens: number): Promise<Timing> {
  const { hidden_size: d, num_attention_heads: heads } = config;
  const { engine } = await create_engine({ device: "wasm" });
  const scope = new Scope(engine);
  const qkv = scope.use(engine.tensor(noise(batch * tokens * 3 * d), [batch, tokens, 3 * d]));
  const timing = await compare(
    () => engine.free(engine.scaled_dot_product_attention(qkv, heads)),
    () => {
      const { context, probs } = engine.eager_attention(qkv, heads);
      engine.free(context);
      engine.free(probs);
    },
  );
  scope.close();
  engine.dispose();
  return timing;
}

async function measure(size: Size, a_case: Case): Promise<Row> {
  const { batch, image } = a_case;
  const config = new ViTMSNConfig(SIZES[size]);
  const tokens =
    Math.floor(image / config.patch_grid.height) * Math.floor(image / config.patch_grid.width) + 1;
  const op = await ops(config, batch, tokens);
  const { timing, reserved } = await forwards(size, a_case);
  return {
    model: size,
    image: `${image}×${image}`,
    batch,
    tokens,
    "op, sdpa ms": round(op.sdpa, 2),
    "op, eager ms": round(op.eager, 2),
    "op, eager / sdpa": round(op.eager / op.sdpa, 2),
    "forward, sdpa ms": round(timing.sdpa),
    "forward, eager ms": round(timing.eager),
    "forward, eager / sdpa": round(timing.eager / timing.sdpa, 2),
    "reference (A100)": String(image === 224 && size === "base" ? (REFERENCE[batch] ?? "") : ""),
    "memory, sdpa / eager MB": reserved.map((bytes) => Math.round(bytes / 1e6)).join(" / "),
  };
}

function chosen_cases(): Case[] {
  const of_image = (image: number) => ({ batch: 1, image });
  if (options.image !== undefined) return [of_image(Number(options.image))];
  if (options.batch !== undefined) return [{ batch: Number(options.batch), image: 224 }];
  return [...[1, 2, 4, 8].map((batch) => ({ batch, image: 224 })), of_image(448), of_image(896)];
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const rows: Row[] = [];
  for (const size of chosen_sizes(options.size)) {
    for (const a_case of chosen_cases()) rows.push(await measure(size, a_case));
  }
  print("Attention, float32, one thread; best rounds", where, rows, options.json);
}

await main();
