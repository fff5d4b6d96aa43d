import { save_files } from "#save";
import type { WeightDtype } from "../dtypes.ts";
import { type TensorToWrite, write_safetensors } from "../loading/formats/write_safetensors.ts";
import { to_json_text } from "../loading/json.ts";
import type { SaveDirectory, SaveOptions } from "../loading/storage_types.ts";
import { CONFIG_FILE, type ViTMSNConfig } from "./configuration_vit_msn.ts";
import { export_weights } from "./export_weights.ts";
import type { PreTrainedModel } from "./pretrained.ts";

/** The name of this package's quantisation in config.json. */
const QUANT_METHOD = "vit_msn_int8";

/** Weights of a sharded model that was saved in the same folder before: they no longer belong to config.json. */
export const OLD_WEIGHTS = /^model(-\d{5}-of-\d{5}\.safetensors|\.safetensors\.index\.json)$/;

/** Writes a model's files into a folder. */
export async function save_model(
  { config, dtype, weights }: PreTrainedModel<never, unknown>,
  { architecture, checkpoint_key }: Pick<typeof PreTrainedModel, "architecture" | "checkpoint_key">,
  directory: SaveDirectory,
  options: SaveOptions,
): Promise<void> {
  const parameters = [...export_weights(weights)].map((parameter) => ({
    ...parameter,
    key: checkpoint_key(parameter.key),
    bytes: parameter.bytes(),
  }));
  await save_files(
    directory,
    checkpoint_files(config, dtype, architecture, parameters),
    options,
    OLD_WEIGHTS,
  );
}

/** model.safetensors and config.json of a model; the config comes last, so that it never describes other weights. */
export function checkpoint_files(
  config: ViTMSNConfig,
  dtype: WeightDtype,
  architecture: string,
  parameters: Iterable<TensorToWrite>,
) {
  const fields = { ...describe_dtype(config.to_dict(), dtype), architectures: [architecture] };
  return {
    "model.safetensors": write_safetensors(parameters, { format: "pt" }),
    [CONFIG_FILE]: to_json_text(fields),
  };
}

/** config.json's fields for the dtype: `quantization_config` stops other readers from reading int8 values as floats. */
function describe_dtype<C extends object>(config: C, dtype: WeightDtype): C & { dtype: WeightDtype } {
  const { quantization_config: loaded, ...fields } = config as C & { quantization_config?: unknown };
  if (dtype === "int8") {
    const quantization_config = { quant_method: QUANT_METHOD };
    return { ...(fields as C), dtype: "float32", quantization_config };
  }
  const is_ours = (loaded as { quant_method?: unknown } | null | undefined)?.quant_method === QUANT_METHOD;
  return { ...(is_ours ? (fields as C) : config), dtype };
}
