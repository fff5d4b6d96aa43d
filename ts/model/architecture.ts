import { VitMsnError } from "../errors.ts";
import type { ViTMSNConfig } from "./configuration_vit_msn.ts";

/** The initial values of a parameter that the checkpoint lacks, as in the reference's _init_weights. */
export type Init = "zeros" | "ones" | "normal";

/** A parameter by its name in checkpoints (hub layout, without the "vit." prefix). */
export interface ParameterSpec {
  key: string;
  dims: readonly number[];
  init: Init;
}

/** A parameter that isn't part of a linear layer. */
export interface TensorSpec extends ParameterSpec {
  kind: "tensor";
}

/** One checkpoint layer inside a linear layer: rows [row, row + rows) of its weight and bias. */
export interface LinearPart {
  row: number;
  rows: number;
  weight: ParameterSpec;
  bias: ParameterSpec | undefined;
}

/** A linear layer of the engine, made of one or several of the checkpoint's. */
export interface LinearSpec {
  kind: "linear";
  name: string;
  out_features: number;
  in_features: number;
  parts: LinearPart[];
  /**
   * Whether an int8 model quantises it. The encoder's layers are nearly all of a model; the patch projection and the
   * classifier, the model's first and last layers, are 3 % of it or less and stay float32.
   */
  quantisable: boolean;
}

export type ModuleSpec = TensorSpec | LinearSpec;

/** Every parameter of a module, in the order of the checkpoint. */
export function parameters_of(module: ModuleSpec): ParameterSpec[] {
  if (module.kind === "tensor") return [module];
  return module.parts.flatMap(({ weight, bias }) => (bias ? [weight, bias] : [weight]));
}

/** The backbone's modules, those of ViTMSNModel (transformers' modeling_vit_msn.py, v4 names). */
export function backbone_modules(config: ViTMSNConfig, use_mask_token: boolean): ModuleSpec[] {
  const { hidden_size: d, patches } = config;
  const tokens = patches.height * patches.width + 1;
  const mask_token = use_mask_token ? [tensor("embeddings.mask_token", [1, 1, d], "zeros")] : [];
  return [
    tensor("embeddings.cls_token", [1, 1, d], "zeros"),
    ...mask_token,
    tensor("embeddings.position_embeddings", [1, tokens, d], "zeros"),
    patch_projection(config),
    ...Array.from({ length: config.num_hidden_layers }, (_, i) => layer_modules(config, i)).flat(),
    ...layer_norm("layernorm", d),
  ];
}

/** The classifier on the CLS token. */
export function classifier_module(config: ViTMSNConfig): LinearSpec {
  if (config.num_labels === 0) {
    throw new VitMsnError(
      "INVALID_CONFIG",
      'config.json: "id2label" has no classes, so the model only gives features (ViTMSNModel, vit-msn embed); pass ' +
        "config: { id2label } for a new classifier.",
      { details: { field: "id2label" } },
    );
  }
  return linear("classifier", config.num_labels, config.hidden_size, false);
}

function layer_modules(config: ViTMSNConfig, index: number): ModuleSpec[] {
  const { hidden_size: d, intermediate_size: mlp } = config;
  const layer = `encoder.layer.${index}`;
  return [
    ...layer_norm(`${layer}.layernorm_before`, d),
    // One GEMM for query, key and value reads hidden states only once.
    stacked(`${layer}.attention.qkv`, d, config.qkv_bias, [
      `${layer}.attention.attention.query`,
      `${layer}.attention.attention.key`,
      `${layer}.attention.attention.value`,
    ]),
    linear(`${layer}.attention.output.dense`, d, d, true),
    ...layer_norm(`${layer}.layernorm_after`, d),
    linear(`${layer}.intermediate.dense`, mlp, d, true),
    linear(`${layer}.output.dense`, d, mlp, true),
  ];
}

function patch_projection(config: ViTMSNConfig): LinearSpec {
  const { hidden_size: d, num_channels: c, patch_grid: patch } = config;
  const name = "embeddings.patch_embeddings.projection";
  const projection = linear(name, d, c * patch.height * patch.width, false);
  const [part] = projection.parts as [LinearPart];
  part.weight.dims = [d, c, patch.height, patch.width];
  return projection;
}

function tensor(key: string, dims: number[], init: Init): TensorSpec {
  return { kind: "tensor", key, dims, init };
}

function layer_norm(name: string, d: number): TensorSpec[] {
  return [tensor(`${name}.weight`, [d], "ones"), tensor(`${name}.bias`, [d], "zeros")];
}

function linear(name: string, out_features: number, in_features: number, quantisable: boolean): LinearSpec {
  const part = linear_part(name, 0, out_features, in_features, true);
  return { kind: "linear", name, out_features, in_features, parts: [part], quantisable };
}

function stacked(name: string, d: number, has_bias: boolean, keys: string[]): LinearSpec {
  const parts = keys.map((key, i) => linear_part(key, i * d, d, d, has_bias));
  return { kind: "linear", name, out_features: keys.length * d, in_features: d, parts, quantisable: true };
}

function linear_part(key: string, row: number, rows: number, columns: number, has_bias: boolean): LinearPart {
  return {
    row,
    rows,
    weight: { key: `${key}.weight`, dims: [rows, columns], init: "normal" },
    bias: has_bias ? { key: `${key}.bias`, dims: [rows], init: "zeros" } : undefined,
  };
}
