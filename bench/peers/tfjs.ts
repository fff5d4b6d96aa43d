import type { ViTMSNConfig } from "../../ts/model/configuration_vit_msn.ts";
import type { Tensor } from "../../ts/tensor.ts";
import { read_weights, transpose, type WeightsByKey } from "../support/weights.ts";
import { type OpenPeer, require_from } from "./peer.ts";

const INSTALL = ["@tensorflow/tfjs-core", "@tensorflow/tfjs-backend-wasm"] as const;

interface TfTensor {
  readonly shape: number[];
  data(): Promise<Float32Array>;
  dispose(): void;
}

/** The ops of @tensorflow/tfjs-core that the model needs. */
interface Tf {
  setBackend(name: "wasm"): Promise<boolean>;
  tensor(data: Float32Array, shape: readonly number[]): TfTensor;
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
  conv2d(x: TfTensor, filter: TfTensor, strides: readonly number[], pad: "valid"): TfTensor;
  fused: { matMul(options: { a: TfTensor; b: TfTensor; bias: TfTensor }): TfTensor };
}

/** TensorFlow.js' wasm backend (SIMD, in Node one thread), float32, the forward written with its ops. */
export const open_tfjs: OpenPeer = async ({ model, folder }) => {
  const tf = require_from<Tf>(folder, INSTALL[0], INSTALL);
  require_from(folder, INSTALL[1], INSTALL);
  if (!(await tf.setBackend("wasm"))) throw new Error("TensorFlow.js' wasm backend doesn't start.");
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

class TfViTMSN {
  readonly #tf: Tf;
  readonly #config: ViTMSNConfig;
  readonly #weights = new Map<string, TfTensor>();

  constructor(tf: Tf, config: ViTMSNConfig, weights: WeightsByKey) {
    this.#tf = tf;
    this.#config = config;
    for (const [key, { data, dims }] of weights) {
      const [rows, columns] = dims as [number, number];
      const is_matrix = dims.length === 2;
      this.#weights.set(
        key,
        is_matrix ? tf.tensor(transpose(data, rows, columns), [columns, rows]) : tf.tensor(data, dims),
      );
    }
    const filter = "embeddings.patch_embeddings.projection.weight";
    const oihw = this.#weight(filter);
    this.#weights.set(filter, tf.transpose(oihw, [2, 3, 1, 0]));
    oihw.dispose();
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
    const { hidden_size, patch_grid } = this.#config;
    const name = "embeddings.patch_embeddings.projection";
    const strides = [patch_grid.height, patch_grid.width];
    const batch = pixels.shape[0] as number;
    const projected = this.#tf.conv2d(
      this.#tf.transpose(pixels, [0, 2, 3, 1]),
      this.#weight(`${name}.weight`),
      strides,
      "valid",
    );
    const biased = this.#tf.add(projected, this.#weight(`${name}.bias`));
    const patches = this.#tf.reshape(biased, [batch, -1, hidden_size]);
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
