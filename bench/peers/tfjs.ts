import type { ViTMSNConfig } from "../../ts/model/configuration_vit_msn.ts";
import type { ViTMSNForImageClassification } from "../../ts/model/modeling_vit_msn.ts";
import type { Tensor } from "../../ts/tensor.ts";
import { read_weights, transpose, type WeightsByKey } from "../support/weights.ts";
import { type OpenPeer, require_from } from "./peer.ts";

const CORE = "@tensorflow/tfjs-core";

/** The backends of TensorFlow.js that run in Node without a native addon. */
export type TfBackend = "wasm" | "cpu";

interface TfTensor {
  readonly shape: number[];
  data(): Promise<Float32Array>;
  dispose(): void;
}

/** The ops of @tensorflow/tfjs-core that the model needs. */
interface Tf {
  setBackend(name: TfBackend): Promise<boolean>;
  tensor(data: Float32Array | Int32Array, shape: readonly number[], dtype?: "int32"): TfTensor;
  variable(initial: TfTensor): TfTensor;
  oneHot(indices: TfTensor, depth: number): TfTensor;
  reshape(x: TfTensor, shape: readonly number[]): TfTensor;
  transpose(x: TfTensor, perm: readonly number[]): TfTensor;
  tidy(body: () => TfTensor): TfTensor;
  add(a: TfTensor, b: TfTensor | number): TfTensor;
  sub(a: TfTensor, b: TfTensor): TfTensor;
  mul(a: TfTensor, b: TfTensor | number): TfTensor;
  erf(x: TfTensor): TfTensor;
  rsqrt(x: TfTensor): TfTensor;
  square(x: TfTensor): TfTensor;
  mean(x: TfTensor, axis: number, keep_dims: boolean): TfTensor;
  softmax(x: TfTensor): TfTensor;
  concat(parts: readonly TfTensor[], axis: number): TfTensor;
  slice(x: TfTensor, begin: readonly number[], size: readonly number[]): TfTensor;
  tile(x: TfTensor, reps: readonly number[]): TfTensor;
  matMul(a: TfTensor, b: TfTensor, transpose_a?: boolean, transpose_b?: boolean): TfTensor;
  fused: { matMul(options: { a: TfTensor; b: TfTensor; bias: TfTensor }): TfTensor };
  losses: { softmaxCrossEntropy(one_hot: TfTensor, logits: TfTensor): TfTensor };
  train: { adam(learning_rate: number): TfAdam };
}

interface TfAdam {
  minimize(loss: () => TfTensor, return_cost: true): TfTensor;
  dispose(): void;
}

/** TensorFlow.js' wasm backend (SIMD, in Node one thread), float32, the forward pass written with its ops. */
export const open_tfjs: OpenPeer = async ({ model, folder }) => {
  const tf = await start(folder, "wasm");
  const network = new TfViTMSN(tf, model.config, await read_weights(model));
  return {
    async run(pixel_values) {
      const logits = tf.tidy(() => network.forward(pixel_values));
      const data = await logits.data();
      logits.dispose();
      return data;
    },
    async close() {
      network.dispose();
    },
  };
};

/** The same network and its training by TensorFlow.js' own gradients and Adam (it has no AdamW). */
export async function open_tfjs_training(
  model: ViTMSNForImageClassification,
  folder: string,
  backend: TfBackend,
  learning_rate: number,
) {
  const tf = await start(folder, backend, ["@tensorflow/tfjs"]); // which brings the gradients
  const network = new TfViTMSN(tf, model.config, await read_weights(model));
  const adam = tf.train.adam(learning_rate);
  const value_of = async (tensor: TfTensor) => {
    const data = await tensor.data();
    tensor.dispose();
    return data;
  };
  return {
    /** Logits [batch · num_labels]. */
    forward: (pixel_values: Tensor<"float32">) => value_of(tf.tidy(() => network.forward(pixel_values))),
    /** A step on the mean cross-entropy, which it returns: forward, gradients of all parameters, Adam. */
    async step(pixel_values: Tensor<"float32">, labels: readonly number[]): Promise<number> {
      const loss = tf.tidy(() => {
        const classes = tf.tensor(Int32Array.from(labels), [labels.length], "int32");
        const one_hot = tf.oneHot(classes, model.config.num_labels);
        const body = () => tf.losses.softmaxCrossEntropy(one_hot, network.forward(pixel_values));
        return adam.minimize(body, true);
      });
      return (await value_of(loss))[0] as number;
    },
    dispose() {
      adam.dispose();
      network.dispose();
    },
  };
}

/** `more`: packages that register themselves with the core, besides the backend. */
async function start(folder: string, backend: TfBackend, more: readonly string[] = []): Promise<Tf> {
  const install = [CORE, `@tensorflow/tfjs-backend-${backend}`, ...more] as const;
  const tf = require_from<Tf>(folder, install[0], install);
  for (const name of install.slice(1)) require_from(folder, name, install);
  if (!(await tf.setBackend(backend))) throw new Error(`TensorFlow.js' ${backend} backend doesn't start.`);
  return tf;
}

class TfViTMSN {
  readonly #tf: Tf;
  readonly #config: ViTMSNConfig;
  readonly #weights = new Map<string, TfTensor>();

  constructor(tf: Tf, config: ViTMSNConfig, weights: WeightsByKey) {
    this.#tf = tf;
    this.#config = config;
    for (const [key, { data, dims }] of weights) {
      const rows = dims[0] as number;
      const columns = data.length / rows;
      // The patches' filter, too, is a matrix: its gradient as a convolution is missing in the wasm backend.
      const is_matrix = dims.length === 2 || dims.length === 4;
      const value = is_matrix
        ? tf.tensor(transpose(data, rows, columns), [columns, rows])
        : tf.tensor(data, dims);
      this.#weights.set(key, tf.variable(value));
      value.dispose();
    }
  }

  forward({ data, dims }: Tensor<"float32">): TfTensor {
    const { num_hidden_layers, hidden_size, num_labels } = this.#config;
    const batch = dims[0] as number;
    let hidden = this.#embeddings(this.#tf.tensor(data, dims));
    for (let i = 0; i < num_hidden_layers; i++) hidden = this.#layer(hidden, `encoder.layer.${i}`);
    const normed = this.#layer_norm(hidden, "layernorm");
    const cls = this.#tf.slice(normed, [0, 0, 0], [batch, 1, hidden_size]);
    return this.#tf.reshape(this.#linear(cls, "classifier"), [batch, num_labels]);
  }

  dispose(): void {
    for (const tensor of this.#weights.values()) tensor.dispose();
  }

  #embeddings(pixels: TfTensor): TfTensor {
    const { patch_grid } = this.#config;
    const [batch, channels, height, width] = pixels.shape as [number, number, number, number];
    const [rows, columns] = [height / patch_grid.height, width / patch_grid.width];
    const cut = [batch, channels, rows, patch_grid.height, columns, patch_grid.width];
    const patches_of_pixels = this.#tf.transpose(this.#tf.reshape(pixels, cut), [0, 2, 4, 1, 3, 5]);
    const flat = this.#tf.reshape(patches_of_pixels, [batch, rows * columns, -1]);
    const patches = this.#linear(flat, "embeddings.patch_embeddings.projection");
    const cls = this.#tf.tile(this.#weight("embeddings.cls_token"), [batch, 1, 1]);
    return this.#tf.add(this.#tf.concat([cls, patches], 1), this.#weight("embeddings.position_embeddings"));
  }

  #layer(hidden: TfTensor, name: string): TfTensor {
    const tf = this.#tf;
    const context = this.#attention(
      this.#layer_norm(hidden, `${name}.layernorm_before`),
      `${name}.attention`,
    );
    const attended = tf.add(this.#linear(context, `${name}.attention.output.dense`), hidden);
    const normed = this.#layer_norm(attended, `${name}.layernorm_after`);
    const inner = this.#gelu(this.#linear(normed, `${name}.intermediate.dense`));
    return tf.add(this.#linear(inner, `${name}.output.dense`), attended);
  }

  #attention(x: TfTensor, name: string): TfTensor {
    const tf = this.#tf;
    const { hidden_size, num_attention_heads } = this.#config;
    const [batch, tokens] = x.shape as [number, number];
    const head_size = hidden_size / num_attention_heads;
    const heads = (part: string) => {
      const rows = this.#linear(x, `${name}.attention.${part}`);
      return tf.transpose(tf.reshape(rows, [batch, tokens, num_attention_heads, head_size]), [0, 2, 1, 3]);
    };
    const query = tf.mul(heads("query"), 1 / Math.sqrt(head_size));
    const weights = tf.softmax(tf.matMul(query, heads("key"), false, true));
    const context = tf.matMul(weights, heads("value"));
    return tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [batch, tokens, hidden_size]);
  }

  /** x/2 · (1 + erf(x / √2)) */
  #gelu(x: TfTensor): TfTensor {
    const tf = this.#tf;
    const erf = tf.erf(tf.mul(x, Math.SQRT1_2));
    return tf.mul(tf.mul(x, tf.add(erf, 1)), 0.5);
  }

  /** One matrix product over all rows of the batch. */
  #linear(x: TfTensor, name: string): TfTensor {
    const tf = this.#tf;
    const weight = this.#weight(`${name}.weight`);
    const [inputs, outputs] = weight.shape as [number, number];
    const rows = tf.reshape(x, [-1, inputs]);
    const product = tf.fused.matMul({ a: rows, b: weight, bias: this.#weight(`${name}.bias`) });
    return tf.reshape(product, [...x.shape.slice(0, -1), outputs]);
  }

  #layer_norm(x: TfTensor, name: string): TfTensor {
    const tf = this.#tf;
    const centred = tf.sub(x, tf.mean(x, -1, true));
    const variance = tf.mean(tf.square(centred), -1, true);
    const normed = tf.mul(centred, tf.rsqrt(tf.add(variance, this.#config.layer_norm_eps)));
    return tf.add(tf.mul(normed, this.#weight(`${name}.weight`)), this.#weight(`${name}.bias`));
  }

  #weight(key: string): TfTensor {
    const weight = this.#weights.get(key);
    if (weight === undefined) throw new Error(`The model has no parameter "${key}".`);
    return weight;
  }
}
