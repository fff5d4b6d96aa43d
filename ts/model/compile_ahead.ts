import { numel } from "../dims.ts";
import type { WeightDtype } from "../dtypes.ts";
import type { Engine, Handle } from "../engine/engine.ts";
import { Tensor } from "../tensor.ts";
import type { ModuleSpec } from "./architecture.ts";
import { ViTMSNConfig } from "./configuration_vit_msn.ts";
import type { ForwardInputs } from "./inputs.ts";
import { linear_dtype, Weights } from "./weights.ts";

/** A model without a checkpoint: its parameters, and the forward pass on them. */
interface ModelToCompile {
  modules(config: ViTMSNConfig): ModuleSpec[];
  forward(config: ViTMSNConfig, weights: Weights, inputs: ForwardInputs): Promise<unknown>;
}

/** Compiles the ops of a forward pass of one image. Two layers suffice, since all layers but the last have the same ops. */
export async function compile_ahead(
  engine: Engine,
  config: ViTMSNConfig,
  dtype: WeightDtype,
  model: ModelToCompile,
): Promise<{ compiled: Promise<void> } | undefined> {
  return engine.compile_ahead?.(async () => {
    const num_hidden_layers = Math.min(config.num_hidden_layers, 2);
    const shallow = new ViTMSNConfig({ ...config.to_dict(), num_hidden_layers });
    const { height, width } = shallow.image_grid;
    const dims = [1, shallow.num_channels, height, width];
    const pixel_values = new Tensor("float32", new Float32Array(numel(dims)), dims);
    await model.forward(shallow, empty_weights(engine, model.modules(shallow), dtype), { pixel_values });
  });
}

/** Every module on an engine that computes nothing: see Engine.compile_ahead. */
function empty_weights(engine: Engine, modules: readonly ModuleSpec[], dtype: WeightDtype): Weights {
  const handles = modules.map((module): [string, Handle] => {
    if (module.kind === "tensor") {
      return [module.key, engine.tensor(new Float32Array(numel(module.dims)), module.dims)];
    }
    const { name, in_features, out_features } = module;
    const has_bias = module.parts.some(({ bias }) => bias !== undefined);
    return [name, engine.linear_weights(out_features, in_features, linear_dtype(module, dtype), has_bias)];
  });
  return new Weights(engine, modules, dtype, new Map(handles));
}
