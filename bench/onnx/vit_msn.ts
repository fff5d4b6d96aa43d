import type { ViTMSNConfig } from "../../ts/model/configuration_vit_msn.ts";
import type { ViTMSNForImageClassification } from "../../ts/model/modeling_vit_msn.ts";
import { read_weights, transpose, type WeightsByKey } from "../support/weights.ts";
import { Graph } from "./graph.ts";

/**
 * The model as ONNX, node for node what torch.onnx exports of transformers' ViTMSNForImageClassification (eager
 * attention), so that the comparison needs no Python: float32, free batch size, exact GELU.
 */
export async function to_onnx(model: ViTMSNForImageClassification): Promise<Uint8Array<ArrayBuffer>> {
  return new Export(model.config, await read_weights(model)).model();
}

class Export {
  readonly #graph = new Graph();
  readonly #config: ViTMSNConfig;
  readonly #weights: WeightsByKey;

  constructor(config: ViTMSNConfig, weights: WeightsByKey) {
    this.#config = config;
    this.#weights = weights;
  }

  model(): Uint8Array<ArrayBuffer> {
    const { num_hidden_layers, image_grid, num_channels, num_labels } = this.#config;
    let hidden = this.#embeddings("pixel_values");
    for (let i = 0; i < num_hidden_layers; i++) hidden = this.#layer(hidden, `encoder.layer.${i}`);
    const normed = this.#layer_norm(hidden, "layernorm");
    const cls = this.#graph.node("Gather", [normed, this.#graph.integers([0])], { axis: 1 });
    const logits = this.#linear(this.#reshape(cls, [-1, this.#config.hidden_size]), "classifier");
    this.#graph.node("Identity", [logits], {}, "logits");
    return this.#graph.model(
      { name: "pixel_values", dims: ["batch", num_channels, image_grid.height, image_grid.width] },
      { name: "logits", dims: ["batch", num_labels] },
    );
  }

  #embeddings(pixel_values: string): string {
    const graph = this.#graph;
    const { hidden_size, patch_grid } = this.#config;
    const name = "embeddings.patch_embeddings.projection";
    const sides = [patch_grid.height, patch_grid.width];
    const projected = graph.node(
      "Conv",
      [pixel_values, this.#constant(`${name}.weight`), this.#constant(`${name}.bias`)],
      {
        kernel_shape: sides,
        strides: sides,
      },
    );
    const patches = graph.node("Transpose", [this.#reshape(projected, [0, hidden_size, -1])], {
      perm: [0, 2, 1],
    });
    const batch = graph.node("Shape", [pixel_values], { start: 0, end: 1 });
    const shape = graph.node("Concat", [batch, graph.integers([1, hidden_size])], { axis: 0 });
    const cls = graph.node("Expand", [this.#constant("embeddings.cls_token"), shape]);
    const tokens = graph.node("Concat", [cls, patches], { axis: 1 });
    return graph.node("Add", [tokens, this.#constant("embeddings.position_embeddings")]);
  }

  #layer(hidden: string, name: string): string {
    const context = this.#attention(
      this.#layer_norm(hidden, `${name}.layernorm_before`),
      `${name}.attention`,
    );
    const attended = this.#graph.node("Add", [
      this.#linear(context, `${name}.attention.output.dense`),
      hidden,
    ]);
    const normed = this.#layer_norm(attended, `${name}.layernorm_after`);
    const inner = this.#gelu(this.#linear(normed, `${name}.intermediate.dense`));
    return this.#graph.node("Add", [this.#linear(inner, `${name}.output.dense`), attended]);
  }

  #attention(x: string, name: string): string {
    const graph = this.#graph;
    const { hidden_size, num_attention_heads } = this.#config;
    const head_size = hidden_size / num_attention_heads;
    const heads = (part: string, perm: readonly number[]) =>
      graph.node(
        "Transpose",
        [
          this.#reshape(this.#linear(x, `${name}.attention.${part}`), [
            0,
            -1,
            num_attention_heads,
            head_size,
          ]),
        ],
        { perm },
      );
    const query = heads("query", [0, 2, 1, 3]);
    const key = heads("key", [0, 2, 3, 1]);
    const value = heads("value", [0, 2, 1, 3]);
    const scale = this.#scalar(1 / Math.sqrt(head_size));
    const scores = graph.node("Mul", [graph.node("MatMul", [query, key]), scale]);
    const context = graph.node("MatMul", [graph.node("Softmax", [scores], { axis: -1 }), value]);
    return this.#reshape(graph.node("Transpose", [context], { perm: [0, 2, 1, 3] }), [0, -1, hidden_size]);
  }

  /** x/2 · (1 + erf(x / √2)) */
  #gelu(x: string): string {
    const graph = this.#graph;
    const erf = graph.node("Erf", [graph.node("Div", [x, this.#scalar(Math.SQRT2)])]);
    const twice = graph.node("Mul", [x, graph.node("Add", [erf, this.#scalar(1)])]);
    return graph.node("Mul", [twice, this.#scalar(0.5)]);
  }

  #linear(x: string, name: string): string {
    const { data, dims } = this.#weight(`${name}.weight`);
    const [rows, columns] = dims as [number, number];
    const weight = this.#graph.floats(transpose(data, rows, columns), [columns, rows]);
    const product = this.#graph.node("MatMul", [x, weight]);
    return this.#weights.has(`${name}.bias`)
      ? this.#graph.node("Add", [product, this.#constant(`${name}.bias`)])
      : product;
  }

  #layer_norm(x: string, name: string): string {
    return this.#graph.node(
      "LayerNormalization",
      [x, this.#constant(`${name}.weight`), this.#constant(`${name}.bias`)],
      {
        axis: -1,
        epsilon: { float: this.#config.layer_norm_eps },
      },
    );
  }

  #reshape(x: string, shape: readonly number[]): string {
    return this.#graph.node("Reshape", [x, this.#graph.integers(shape)]);
  }

  #scalar(value: number): string {
    return this.#graph.floats(Float32Array.of(value), []);
  }

  #constant(key: string): string {
    const { data, dims } = this.#weight(key);
    return this.#graph.floats(data, dims);
  }

  #weight(key: string) {
    const weight = this.#weights.get(key);
    if (weight === undefined) throw new Error(`The model has no parameter "${key}".`);
    return weight;
  }
}
