import { numel } from "../../dims.ts";
import { ViTMSNConfig, type ViTMSNConfigInit } from "../../model/configuration_vit_msn.ts";
import { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import type { ModelOptions } from "../../model/pretrained.ts";
import { normal_values } from "../../model/random.ts";

/**
 * A fresh encoder, initialised as in MSN: linear layers, positions and CLS by N(0, initializer_range²), the
 * patch projection by N(0, 2 / fan_in); from_config leaves positions and CLS zero, as transformers does.
 * Source: deit.py of facebookresearch/msn.
 */
export async function msn_encoder(
  config: ViTMSNConfig | ViTMSNConfigInit,
  options: ModelOptions = {},
): Promise<ViTMSNModel> {
  const full = config instanceof ViTMSNConfig ? config : new ViTMSNConfig(config);
  const model = await ViTMSNModel.from_config(full, options);
  const { engine, weights } = model;
  const { seed = 0 } = options;
  for (const key of ["embeddings.cls_token", "embeddings.position_embeddings"]) {
    const dims = engine.dims(weights.tensor(key));
    const size = numel(dims);
    weights.replace(key, engine.tensor(normal_values(seed, key, 0, size, full.initializer_range), dims));
  }
  const projection = "embeddings.patch_embeddings.projection";
  const { height, width } = full.patch_grid;
  const fan_in = full.num_channels * height * width;
  const values = normal_values(seed, projection, 0, full.hidden_size * fan_in, Math.sqrt(2 / fan_in));
  engine.set_rows(weights.linear(projection), 0, new Uint8Array(values.buffer), "float32");
  model.weights_changed();
  return model;
}
