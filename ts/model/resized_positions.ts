import { numel } from "../dims.ts";
import type { Grid } from "../engine/engine.ts";
import { read_json } from "../loading/json.ts";
import type { Checkpoint, ModelSource } from "../loading/types.ts";
import { canonical_key } from "./checkpoint_keys.ts";
import type { CheckpointMatch, FoundTensor } from "./checkpoint_match.ts";
import { CONFIG_FILE, ViTMSNConfig } from "./configuration_vit_msn.ts";

const POSITIONS = "embeddings.position_embeddings";

/**
 * Accepts position embeddings of another image_size than config.json's, which a caller's config overrides: when they are
 * loaded, they are interpolated bicubically to the new grid, as the forward pass's interpolate_pos_encoding does, and DeiT and
 * timm on loading. A checkpoint that contradicts its own config.json still doesn't fit.
 */
export async function accept_resized_positions(
  match: CheckpointMatch,
  checkpoint: Checkpoint,
  config: ViTMSNConfig,
  files: ModelSource,
): Promise<CheckpointMatch> {
  const misshapen = match.mismatched.find(({ key }) => canonical_key(key) === POSITIONS);
  const tensor = misshapen && checkpoint.tensors.get(misshapen.key);
  if (tensor === undefined || tensor.dtype === "int8") return match;
  const from = await stored_grid(files, config, tensor.dims);
  if (from === undefined) return match;
  const { patches: to, hidden_size } = config;
  if (tensor.dims.join() !== [1, 1 + from.height * from.width, hidden_size].join()) return match;
  const resized: FoundTensor = {
    tensor,
    dtype: tensor.dtype,
    resize: (engine, positions) => {
      try {
        return engine.interpolate_positions(positions, from, to);
      } finally {
        engine.free(positions);
      }
    },
  };
  return {
    ...match,
    found: new Map([...match.found, [POSITIONS, resized]]),
    mismatched: match.mismatched.filter((one) => one !== misshapen),
  };
}

/** The grid of patches by config.json; without one, a square. Undefined if it is the model's, too. */
async function stored_grid(
  files: ModelSource,
  config: ViTMSNConfig,
  dims: readonly number[],
): Promise<Grid | undefined> {
  const fields = await read_json(files, CONFIG_FILE);
  if (fields === undefined) {
    const side = Math.sqrt(numel(dims.slice(0, -1)) - 1);
    return Number.isInteger(side) ? { height: side, width: side } : undefined;
  }
  const { image_size, patch_size } = fields as { image_size?: number; patch_size?: number };
  const stored = new ViTMSNConfig({
    ...(image_size !== undefined && { image_size }),
    ...(patch_size !== undefined && { patch_size }),
  });
  const { height, width } = stored.patches;
  const is_same = height === config.patches.height && width === config.patches.width;
  return is_same ? undefined : { height, width };
}
