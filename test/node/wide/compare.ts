// Runs the ops of two engines, whose files are the arguments, and prints the names of those whose results differ in a bit.
import { readFileSync } from "node:fs";
import type { LinearHandle, TensorHandle } from "../../../ts/engine/engine.ts";
import { create_wasm_engine, type WasmEngine } from "../../../ts/engine/wasm/wasm_engine.ts";

type Run = (engine: WasmEngine) => readonly TensorHandle[];

/** Values in -1..1 that look random and are the same on every run. */
function values(count: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed * 2654435761 + 12345;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

function tensor(engine: WasmEngine, dims: readonly number[], seed: number): TensorHandle {
  return engine.tensor(
    values(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
    dims,
  );
}

function layer(
  engine: WasmEngine,
  out_features: number,
  in_features: number,
  dtype: "float32" | "float16",
): LinearHandle {
  const weights = engine.linear_weights(out_features, in_features, dtype, true);
  const bytes = (count: number, seed: number) => new Uint8Array(values(count, seed).buffer);
  engine.set_rows(weights, 0, bytes(out_features * in_features, 1), "float32");
  engine.set_bias(weights, 0, bytes(out_features, 2), "float32");
  return weights;
}

/** Rows, inputs and outputs: of a few tiles, ragged ones, an odd number of panels, and large ones for Strassen. */
const PRODUCTS = [
  [1, 384, 384],
  [7, 33, 21],
  [42, 520, 1000],
  [61, 512, 528],
  [197, 384, 1536],
  [100, 1536, 400],
] as const;

const cases: [string, Run][] = [];
for (const [rows, inputs, outputs] of PRODUCTS) {
  const name = `${rows}×${inputs} → ${outputs}`;
  for (const dtype of ["float32", "float16"] as const) {
    for (const activation of ["identity", "gelu"] as const) {
      cases.push([
        `linear ${name} ${dtype} ${activation}`,
        (engine) => [
          engine.linear(
            tensor(engine, [rows, inputs], 3),
            layer(engine, outputs, inputs, dtype),
            activation,
            tensor(engine, [rows, outputs], 4),
          ),
        ],
      ]);
    }
  }
  cases.push([
    `gradients ${name}`,
    (engine) => {
      const grad = tensor(engine, [rows, outputs], 5);
      const by = engine.linear_backward_weights(grad, tensor(engine, [rows, inputs], 6));
      const input = engine.linear_backward_input(grad, layer(engine, outputs, inputs, "float32"));
      return [input, by.weight, by.bias];
    },
  ]);
}
for (const [tokens, heads, head_dim] of [
  [1, 2, 8],
  [50, 3, 64],
  [197, 2, 20],
  [300, 1, 63],
] as const) {
  const width = heads * head_dim;
  cases.push([
    `attention ${tokens}, ${heads} heads of ${head_dim}`,
    (engine) => {
      const qkv = tensor(engine, [2, tokens, 3 * width], 7);
      const context = engine.scaled_dot_product_attention(qkv, heads);
      const eager = engine.eager_attention(qkv, heads);
      const grad = tensor(engine, [2, tokens, width], 8);
      const by = engine.scaled_dot_product_attention_backward(grad, qkv, context, heads);
      return [context, eager.context, eager.probs, by];
    },
  ]);
}
for (const columns of [1, 7, 12, 384, 1000]) {
  const dims = [5, columns];
  cases.push([
    `rows of ${columns}`,
    (engine) => {
      const [x, y, weight] = [
        tensor(engine, dims, 1),
        tensor(engine, dims, 2),
        tensor(engine, [columns], 3),
      ] as const;
      const by = engine.layer_norm_backward(y, x, weight, 1e-6);
      const normalised = engine.batch_norm(x, weight, weight, 1e-5);
      const momenta = [tensor(engine, dims, 4), tensor(engine, dims, 5), engine.activate(x, "relu")] as const;
      const common = { learning_rate: 0.01, weight_decay: 0.02, gradient_scale: 1 };
      engine.adamw_step(x, y, momenta[0], momenta[2], {
        ...common,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        step: 1,
      });
      engine.sgd_step(x, y, momenta[0], { ...common, momentum: 0.9, nesterov: true, first: false });
      engine.lars_step(x, y, momenta[1], { ...common, momentum: 0.9, trust_coefficient: 0.01, epsilon: 0 });
      engine.ema(momenta[1], x, 0.9);
      return [
        ...[x, ...momenta, normalised.y, by.x, by.weight, by.bias],
        engine.add(x, y),
        engine.layer_norm(x, weight, weight, 1e-6),
        engine.dropout(x, 0.1, 1),
        ...(["gelu", "silu", "gelu_new", "quick_gelu", "relu", "tanh"] as const).flatMap((activation) => [
          engine.activate(x, activation),
          engine.activate_backward(y, x, activation),
        ]),
      ];
    },
  ]);
}

async function bits(engine: WasmEngine, run: Run): Promise<Uint32Array[]> {
  const results = await Promise.all(run(engine).map((result) => engine.read(result)));
  return results.map(({ buffer }) => new Uint32Array(buffer));
}

const engines = process.argv
  .slice(2)
  .map((file) => create_wasm_engine(new WebAssembly.Module(readFileSync(file))));
const different: string[] = [];
for (const [name, run] of cases) {
  const [first, ...others] = await Promise.all(engines.map((engine) => bits(engine, run)));
  const is_same = (other: Uint32Array[]) =>
    other.every((values, i) => values.every((value, at) => value === first?.[i]?.[at]));
  if (!others.every(is_same)) different.push(name);
}
console.log(JSON.stringify({ cases: cases.length, different }));
