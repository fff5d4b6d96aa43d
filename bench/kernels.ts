/**
 * Every op of the CPU engine at the shapes of ViT-MSN, through the interface that the model calls: GFLOP/s or GB/s, and
 * the share of what one core can do at most.
 */
import { parseArgs } from "node:util";
import { WEIGHT_DTYPES, type WeightDtype } from "../ts/dtypes.ts";
import { create_engine } from "../ts/engine/create_engine.ts";
import {
  ACTIVATIONS,
  type Activation,
  type Engine,
  type LinearHandle,
  Scope,
  type TensorHandle,
} from "../ts/engine/engine.ts";
import type { StartedEngine } from "../ts/engine/engine_options.ts";
import type { TrainingEngine } from "../ts/engine/training_engine.ts";
import { ViTMSNConfig } from "../ts/model/configuration_vit_msn.ts";
import { measure_peak, type Peak } from "./support/peak.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { repeat } from "./support/timing.ts";
import { noise, SIZES, type Size } from "./support/vit_msn.ts";

const HELP = `Usage: node bench/run.mjs kernels [OPTIONS]

  --size small|base   one architecture; default both
  --batch N           one batch size; default 1 and 8
  --only TEXT         ops whose name contains TEXT
  --ms N              measure each op for so long; default 400
  --json              print JSON`;

const { values: options } = parseArgs({
  options: {
    size: { type: "string" },
    batch: { type: "string" },
    only: { type: "string", default: "" },
    ms: { type: "string", default: "400" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

/** What a call does: operations on floats or on int8 weights, or bytes read and written (each once). */
type Work = { flops: number } | { int8_ops: number } | { bytes: number };
type Prepare = (scope: Scope) => () => TensorHandle | undefined;

const FLOAT_BYTES = 4;

/** Runs cases on one engine and collects their rows. */
class Bench {
  readonly engine: Engine & TrainingEngine;
  readonly rows: Row[] = [];
  readonly #peak: Peak;
  readonly #uses_byte_dot: boolean;

  constructor({ engine, engine_info }: StartedEngine, peak: Peak) {
    this.engine = engine as TrainingEngine; // the CPU's is one
    this.#peak = peak;
    this.#uses_byte_dot = ["unsigned", "signed"].includes(engine_info.byte_dot ?? "");
  }

  /** Measures one op; `prepare` makes its operands, and what it returns is timed and its result freed. */
  async add(op: string, shape: string, work: Work, prepare: Prepare): Promise<void> {
    if (!op.includes(options.only)) return;
    const ms = await this.#time(prepare);
    this.#report(op, shape, work, ms);
  }

  /** Measures what an activation adds to the linear layer that it is fused into. */
  async add_activation(activation: Activation, rows: number, columns: number): Promise<void> {
    const op = `${activation}, fused`;
    if (!op.includes(options.only)) return;
    const inputs = 16; // few, so that the activation is most of the time
    const prepare = (name: Activation) => (scope: Scope) => {
      const x = this.random(scope, [rows, inputs]);
      const weights = this.linear(scope, columns, inputs);
      return () => this.engine.linear(x, weights, name);
    };
    const ms = (await this.#time(prepare(activation))) - (await this.#time(prepare("identity")));
    this.#report(op, `${rows}×${columns}`, { bytes: 2 * FLOAT_BYTES * rows * columns }, ms);
  }

  random(scope: Scope, dims: readonly number[]): TensorHandle {
    return scope.use(this.engine.tensor(noise(dims.reduce((a, b) => a * b, 1)), dims));
  }

  linear(
    scope: Scope,
    out_features: number,
    in_features: number,
    dtype: WeightDtype = "float32",
  ): LinearHandle {
    const weights = scope.use(this.engine.linear_weights(out_features, in_features, dtype, true));
    this.engine.set_rows(weights, 0, bytes_of(noise(out_features * in_features)), "float32");
    this.engine.set_bias(weights, 0, bytes_of(noise(out_features)), "float32");
    return weights;
  }

  async #time(prepare: Prepare): Promise<number> {
    const scope = new Scope(this.engine);
    const run = prepare(scope);
    const once = () => {
      const result = run();
      if (result !== undefined) this.engine.free(result);
    };
    const ms = await repeat(once, { min_ms: Number(options.ms), min_rounds: 5 });
    scope.close();
    return ms;
  }

  /** What is counted, the peak of it in billions a second, and their unit. */
  #measured(work: Work): [count: number, most: number, unit: string] {
    if ("flops" in work) return [work.flops, this.#peak.gflops, "GFLOP/s"];
    if ("bytes" in work) return [work.bytes, this.#peak.gb_per_s, "GB/s"];
    const { int16_gops, byte_gops } = this.#peak;
    const most = this.#uses_byte_dot ? (byte_gops as number) : int16_gops;
    return [work.int8_ops, most, "Gop/s"];
  }

  #report(op: string, shape: string, work: Work, ms: number): void {
    const [count, most, unit] = this.#measured(work);
    const rate = count / ms / 1e6;
    this.rows.push({
      op,
      shape,
      ms: round(ms, 4),
      rate: round(rate),
      unit,
      "% of peak": round((100 * rate) / most),
    });
  }
}

function bytes_of(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer);
}

/** The four kinds of linear layers of a block, with what is fused into each. */
async function linear_layers(
  bench: Bench,
  config: ViTMSNConfig,
  tokens: number,
  dtype: WeightDtype,
): Promise<void> {
  const { hidden_size: d, intermediate_size: mlp } = config;
  const layers = [
    { name: "qkv", inputs: d, outputs: 3 * d, activation: "identity", has_residual: false },
    { name: "attention output", inputs: d, outputs: d, activation: "identity", has_residual: true },
    { name: "mlp up, gelu", inputs: d, outputs: mlp, activation: "gelu", has_residual: false },
    { name: "mlp down", inputs: mlp, outputs: d, activation: "identity", has_residual: true },
  ] as const;
  for (const { name, inputs, outputs, activation, has_residual } of layers) {
    const op = `linear ${name}, ${dtype}`;
    const shape = `${tokens}×${inputs} → ${outputs}`;
    const operations = 2 * tokens * inputs * outputs;
    const work = dtype === "int8" ? { int8_ops: operations } : { flops: operations };
    await bench.add(op, shape, work, (scope) => {
      const x = bench.random(scope, [tokens, inputs]);
      const weights = bench.linear(scope, outputs, inputs, dtype);
      const residual = has_residual ? bench.random(scope, [tokens, outputs]) : undefined;
      return () => bench.engine.linear(x, weights, activation, residual);
    });
  }
}

async function attention(bench: Bench, config: ViTMSNConfig, batch: number, tokens: number): Promise<void> {
  const { hidden_size: d, num_attention_heads: heads } = config;
  const work = { flops: 4 * batch * tokens * tokens * d };
  const shape = `${batch}×${tokens}, ${heads} heads of ${d / heads}`;
  await bench.add("scaled_dot_product_attention", shape, work, (scope) => {
    const qkv = bench.random(scope, [batch, tokens, 3 * d]);
    return () => bench.engine.scaled_dot_product_attention(qkv, heads);
  });
  await bench.add("eager_attention", shape, work, (scope) => {
    const qkv = bench.random(scope, [batch, tokens, 3 * d]);
    return () => {
      const { context, probs } = bench.engine.eager_attention(qkv, heads);
      bench.engine.free(probs);
      return context;
    };
  });
}

async function embeddings(bench: Bench, config: ViTMSNConfig, batch: number): Promise<void> {
  const { hidden_size: d, num_channels: c, image_grid: image, patch_grid: patch, patches } = config;
  const count = patches.height * patches.width;
  const inputs = c * patch.height * patch.width;
  await bench.add(
    "patch_embed",
    `${batch}×${c}×${image.height}×${image.width}`,
    { flops: 2 * batch * count * inputs * d },
    (scope) => {
      const pixels = bench.random(scope, [batch, c, image.height, image.width]);
      const projection = bench.linear(scope, d, inputs);
      return () => bench.engine.patch_embed(pixels, projection, patch);
    },
  );
  await bench.add(
    "embed_tokens",
    `${batch}×${count}×${d}`,
    { bytes: 2 * FLOAT_BYTES * batch * count * d },
    (scope) => {
      const tokens = bench.random(scope, [batch, count, d]);
      const cls_token = bench.random(scope, [1, 1, d]);
      const positions = bench.random(scope, [1, count + 1, d]);
      return () => bench.engine.embed_tokens(tokens, cls_token, positions);
    },
  );
  const visible = Math.round(0.7 * count);
  await bench.add(
    "take_tokens",
    `${batch}×${count + 1}×${d} → ${visible + 1}`,
    { bytes: 2 * FLOAT_BYTES * batch * (visible + 1) * d },
    (scope) => {
      const tokens = bench.random(scope, [batch, count + 1, d]);
      const scattered = Array.from({ length: visible }, (_, i) => Math.floor((i * count) / visible));
      const patches = Uint32Array.from(Array.from({ length: batch }, () => scattered).flat());
      return () => bench.engine.take_tokens(tokens, patches, visible);
    },
  );
  const larger = { height: 2 * patches.height, width: 2 * patches.width };
  await bench.add(
    "interpolate_positions",
    `${count}×${d} → ${4 * count}`,
    { bytes: 5 * FLOAT_BYTES * count * d },
    (scope) => {
      const positions = bench.random(scope, [1, count + 1, d]);
      return () => bench.engine.interpolate_positions(positions, patches, larger);
    },
  );
}

async function row_ops(bench: Bench, config: ViTMSNConfig, batch: number, tokens: number): Promise<void> {
  const { hidden_size: d, layer_norm_eps, intermediate_size: mlp } = config;
  const moved = { bytes: 2 * FLOAT_BYTES * batch * tokens * d };
  await bench.add("layer_norm", `${batch * tokens}×${d}`, moved, (scope) => {
    const x = bench.random(scope, [batch, tokens, d]);
    const weight = bench.random(scope, [d]);
    const bias = bench.random(scope, [d]);
    return () => bench.engine.layer_norm(x, weight, bias, layer_norm_eps);
  });
  for (const kind of ["cls", "mean"] as const) {
    const read = kind === "cls" ? 1 : tokens - 1;
    await bench.add(
      `pool ${kind}`,
      `${batch}×${tokens}×${d}`,
      { bytes: FLOAT_BYTES * batch * (read + 1) * d },
      (scope) => {
        const x = bench.random(scope, [batch, tokens, d]);
        return () => bench.engine.pool(x, kind);
      },
    );
  }
  for (const activation of ACTIVATIONS) {
    if (activation !== "identity") await bench.add_activation(activation, batch * tokens, mlp);
  }
}

/** The losses of a batch's logits; a target is as large as they are but for cross-entropy's class indices. */
async function losses(bench: Bench, { num_labels }: ViTMSNConfig, batch: number): Promise<void> {
  const size = batch * num_labels;
  const shape = `${batch}×${num_labels}`;
  await bench.add("cross_entropy", shape, { bytes: FLOAT_BYTES * (size + batch) }, (scope) => {
    const logits = bench.random(scope, [batch, num_labels]);
    const labels = Int32Array.from({ length: batch }, (_, i) => i);
    return () => bench.engine.cross_entropy(logits, labels);
  });
  for (const loss of ["mse_loss", "bce_with_logits"] as const) {
    await bench.add(loss, shape, { bytes: 2 * FLOAT_BYTES * size }, (scope) => {
      const logits = bench.random(scope, [batch, num_labels]);
      const target = bench.random(scope, [batch, num_labels]);
      return () => bench.engine[loss](logits, target);
    });
  }
}

/** The gradients of a block's ops. */
async function gradients(bench: Bench, config: ViTMSNConfig, batch: number, tokens: number): Promise<void> {
  const { hidden_size: d, intermediate_size: mlp, num_attention_heads: heads, layer_norm_eps } = config;
  const rows = batch * tokens;
  for (const [name, inputs, outputs] of [
    ["qkv", d, 3 * d],
    ["attention output", d, d],
    ["mlp up", d, mlp],
    ["mlp down", mlp, d],
  ] as const) {
    const shape = `${rows}×${inputs} → ${outputs}`;
    const work = { flops: 2 * rows * inputs * outputs };
    await bench.add(`linear_backward_input ${name}`, shape, work, (scope) => {
      const grad = bench.random(scope, [rows, outputs]);
      const weights = bench.linear(scope, outputs, inputs);
      return () => bench.engine.linear_backward_input(grad, weights);
    });
    await bench.add(`linear_backward_weights ${name}`, shape, work, (scope) => {
      const grad = bench.random(scope, [rows, outputs]);
      const x = bench.random(scope, [rows, inputs]);
      return () => {
        const { weight, bias } = bench.engine.linear_backward_weights(grad, x);
        bench.engine.free(bias);
        return weight;
      };
    });
  }
  const work = { flops: 10 * batch * tokens * tokens * d };
  const shape = `${batch}×${tokens}, ${heads} heads of ${d / heads}`;
  await bench.add("scaled_dot_product_attention_backward", shape, work, (scope) => {
    const grad = bench.random(scope, [batch, tokens, d]);
    const qkv = bench.random(scope, [batch, tokens, 3 * d]);
    const context = scope.use(bench.engine.scaled_dot_product_attention(qkv, heads));
    return () => bench.engine.scaled_dot_product_attention_backward(grad, qkv, context, heads);
  });
  await bench.add("layer_norm_backward", `${rows}×${d}`, { bytes: 3 * FLOAT_BYTES * rows * d }, (scope) => {
    const grad = bench.random(scope, [rows, d]);
    const x = bench.random(scope, [rows, d]);
    const weight = bench.random(scope, [d]);
    return () => {
      const by = bench.engine.layer_norm_backward(grad, x, weight, layer_norm_eps);
      bench.engine.free(by.weight);
      bench.engine.free(by.bias);
      return by.x;
    };
  });
  const elements = rows * mlp;
  for (const activation of ACTIVATIONS) {
    if (activation === "identity") continue;
    const moved = { bytes: 3 * FLOAT_BYTES * elements };
    await bench.add(`activate_backward ${activation}`, `${rows}×${mlp}`, moved, (scope) => {
      const grad = bench.random(scope, [rows, mlp]);
      const x = bench.random(scope, [rows, mlp]);
      return () => bench.engine.activate_backward(grad, x, activation);
    });
  }
  await bench.add("activate gelu", `${rows}×${mlp}`, { bytes: 2 * FLOAT_BYTES * elements }, (scope) => {
    const x = bench.random(scope, [rows, mlp]);
    return () => bench.engine.activate(x, "gelu");
  });
  await bench.add("dropout", `${rows}×${d}`, { bytes: 2 * FLOAT_BYTES * rows * d }, (scope) => {
    const x = bench.random(scope, [rows, d]);
    return () => bench.engine.dropout(x, 0.1, 1);
  });
  await bench.add("add", `${rows}×${d}`, { bytes: 3 * FLOAT_BYTES * rows * d }, (scope) => {
    const x = bench.random(scope, [rows, d]);
    const y = bench.random(scope, [rows, d]);
    return () => bench.engine.add(x, y);
  });
}

/**
 * What a step of self-supervised pre-training adds: the projection head's batch norm, similarities with prototypes,
 * targets, the loss and the moving average, for a batch of images with 11 anchors each.
 */
async function pretraining(bench: Bench, config: ViTMSNConfig, batch: number): Promise<void> {
  const { hidden_size: d, intermediate_size: mlp } = config;
  const [hidden, width, prototypes] = [2048, 256, 1024];
  const rows = 11 * Math.max(batch, 2);
  const by_rows = (columns: number) => FLOAT_BYTES * rows * columns;
  await bench.add("batch_norm", `${rows}×${hidden}`, { bytes: 2 * by_rows(hidden) }, (scope) => {
    const [x, weight, bias] = [
      bench.random(scope, [rows, hidden]),
      bench.random(scope, [hidden]),
      bench.random(scope, [hidden]),
    ];
    return () => {
      const { y, mean, variance } = bench.engine.batch_norm(x, weight, bias, 1e-5);
      bench.engine.free(mean);
      bench.engine.free(variance);
      return y;
    };
  });
  await bench.add("batch_norm_backward", `${rows}×${hidden}`, { bytes: 3 * by_rows(hidden) }, (scope) => {
    const [grad, x] = [bench.random(scope, [rows, hidden]), bench.random(scope, [rows, hidden])];
    const weight = bench.random(scope, [hidden]);
    return () => {
      const by = bench.engine.batch_norm_backward(grad, x, weight, 1e-5);
      bench.engine.free(by.weight);
      bench.engine.free(by.bias);
      return by.x;
    };
  });
  const product = 2 * rows * width * prototypes;
  const shape = `${rows}×${width} · ${prototypes}`;
  await bench.add("prototype_logits", shape, { flops: product }, (scope) => {
    const [z, q] = [bench.random(scope, [rows, width]), bench.random(scope, [prototypes, width])];
    return () => bench.engine.prototype_logits(z, q, 0.1);
  });
  await bench.add("prototype_logits_backward", shape, { flops: 2 * product }, (scope) => {
    const [z, q] = [bench.random(scope, [rows, width]), bench.random(scope, [prototypes, width])];
    const grad = bench.random(scope, [rows, prototypes]);
    return () => {
      const by = bench.engine.prototype_logits_backward(grad, z, q, 0.1);
      bench.engine.free(by.prototypes);
      return by.x;
    };
  });
  const logits_of = (scope: Scope, count: number) => bench.random(scope, [count, prototypes]);
  const targets_bytes = { bytes: (2 * by_rows(prototypes)) / 11 };
  await bench.add("msn_targets", `${rows / 11}×${prototypes}, Sinkhorn`, targets_bytes, (scope) => {
    const logits = logits_of(scope, rows / 11);
    return () => bench.engine.msn_targets(logits, 0.25, 3);
  });
  await bench.add("msn_loss", `${rows}×${prototypes}`, { bytes: by_rows(prototypes) }, (scope) => {
    const [logits, targets] = [logits_of(scope, rows), logits_of(scope, rows / 11)];
    return () => bench.engine.msn_loss(logits, targets, 1, 0);
  });
  await bench.add(
    "msn_loss_backward",
    `${rows}×${prototypes}`,
    { bytes: 2 * by_rows(prototypes) },
    (scope) => {
      const [logits, targets] = [logits_of(scope, rows), logits_of(scope, rows / 11)];
      return () => bench.engine.msn_loss_backward(logits, targets, 1, 0);
    },
  );
  await bench.add("ema", `${mlp}×${d}`, { bytes: 3 * FLOAT_BYTES * mlp * d }, (scope) => {
    const [target, source] = [bench.random(scope, [mlp, d]), bench.random(scope, [mlp, d])];
    return () => void bench.engine.ema(target, source, 0.996);
  });
}

/** The steps of optimisers on the largest weight of a block, and its way into the layer. */
async function optimisers(
  bench: Bench,
  { hidden_size: d, intermediate_size: mlp }: ViTMSNConfig,
): Promise<void> {
  const shape = `${mlp}×${d}`;
  const pass = FLOAT_BYTES * d * mlp;
  const common = { learning_rate: 1e-4, weight_decay: 0.01, gradient_scale: 1 };
  const tensors = (scope: Scope) => {
    const made = [1, 2, 3, 4].map(() => bench.random(scope, [mlp, d]));
    return made as [TensorHandle, TensorHandle, TensorHandle, TensorHandle];
  };
  await bench.add("adamw_step", shape, { bytes: 7 * pass }, (scope) => {
    const [parameter, gradient, m] = tensors(scope);
    const v = scope.use(bench.engine.tensor(new Float32Array(d * mlp), [mlp, d]));
    const step = { ...common, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step: 1 };
    return () => void bench.engine.adamw_step(parameter, gradient, m, v, step);
  });
  await bench.add("sgd_step", shape, { bytes: 5 * pass }, (scope) => {
    const [parameter, gradient, buffer] = tensors(scope);
    const step = { ...common, momentum: 0.9, nesterov: false, first: false };
    return () => void bench.engine.sgd_step(parameter, gradient, buffer, step);
  });
  await bench.add("lars_step", shape, { bytes: 7 * pass }, (scope) => {
    const [parameter, gradient, buffer] = tensors(scope);
    const step = { ...common, momentum: 0.9, trust_coefficient: 0.001, epsilon: 1e-8 };
    return () => void bench.engine.lars_step(parameter, gradient, buffer, step);
  });
  await bench.add("sum_of_squares", shape, { bytes: pass }, (scope) => {
    const [x] = tensors(scope);
    return () => bench.engine.sum_of_squares(x);
  });
  await bench.add("set_linear", shape, { bytes: 2 * pass }, (scope) => {
    const [weight] = tensors(scope);
    const layer = bench.linear(scope, mlp, d);
    return () => void bench.engine.set_linear(layer, weight);
  });
}

/** What loading a checkpoint costs: its values are widened or narrowed, and packed for the GEMM. */
async function weights(bench: Bench, config: ViTMSNConfig): Promise<void> {
  const { hidden_size: d, intermediate_size: mlp } = config;
  const values = bytes_of(noise(d * mlp));
  for (const dtype of WEIGHT_DTYPES) {
    const stored = { float32: 4, float16: 2, bfloat16: 2, int8: 1 }[dtype];
    await bench.add(
      `set_rows, float32 stored as ${dtype}`,
      `${mlp}×${d}`,
      { bytes: (4 + stored) * d * mlp },
      (scope) => {
        const linear = scope.use(bench.engine.linear_weights(mlp, d, dtype, true));
        return () => {
          bench.engine.set_rows(linear, 0, values, "float32");
          return undefined;
        };
      },
    );
  }
  const floats = noise(d * mlp);
  await bench.add("tensor (upload)", `${mlp}×${d}`, { bytes: 2 * FLOAT_BYTES * d * mlp }, () => () => {
    return bench.engine.tensor(floats, [mlp, d]);
  });
}

async function measure_size(bench: Bench, size: Size, batches: readonly number[]): Promise<void> {
  const config = new ViTMSNConfig(SIZES[size]);
  const tokens = config.patches.height * config.patches.width + 1;
  for (const batch of batches) {
    await linear_layers(bench, config, batch * tokens, "float32");
    await attention(bench, config, batch, tokens);
    await row_ops(bench, config, batch, tokens);
    await embeddings(bench, config, batch);
    await losses(bench, config, batch);
    await gradients(bench, config, batch, tokens);
    await pretraining(bench, config, batch);
  }
  await optimisers(bench, config);
  await linear_layers(bench, config, tokens, "float16");
  await linear_layers(bench, config, tokens, "bfloat16");
  for (const batch of batches) await linear_layers(bench, config, batch * tokens, "int8");
  await weights(bench, config);
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const where = machine();
  const sizes = options.size === undefined ? (Object.keys(SIZES) as Size[]) : [options.size as Size];
  const batches = options.batch === undefined ? [1, 8] : [Number(options.batch)];
  const peak = await measure_peak();
  const rows: Row[] = [];
  for (const size of sizes) {
    const started = await create_engine({ device: "wasm" });
    const bench = new Bench(started, peak);
    await measure_size(bench, size, batches);
    await started.engine.dispose();
    rows.push(...bench.rows.map((row) => ({ model: size, ...row })));
  }
  print(`Engine ops, one thread; ${describe_peak(peak)}`, where, rows, options.json);
}

function describe_peak({ gflops, int16_gops, byte_gops, gb_per_s }: Peak): string {
  const dots = `${round(int16_gops)} Gop/s with int16's dot product`;
  const byte_dots = byte_gops === undefined ? "" : ` and ${round(byte_gops)} with bytes'`;
  return `peak ${round(gflops)} GFLOP/s (plain SIMD128), ${dots}${byte_dots}, ${round(gb_per_s)} GB/s (measured)`;
}

await main();
