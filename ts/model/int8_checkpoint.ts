import { VitMsnError } from "../errors.ts";
import { view_of } from "../loading/bytes.ts";
import type { Checkpoint, CheckpointTensor } from "../loading/types.ts";
import type { ModuleSpec } from "./architecture.ts";
import { canonical_key } from "./checkpoint_keys.ts";

/** The scales of an int8 weight [out, in] are float32 [out] under the weight's key with this suffix. */
export const SCALE_SUFFIX = "_scale";

/** The scales of the int8 weights of linear layers, by the weights' canonical keys. */
export function find_scales(
  checkpoint: Checkpoint,
  modules: readonly ModuleSpec[],
): Map<string, CheckpointTensor> {
  const parts = modules.flatMap((module) => (module.kind === "linear" ? module.parts : []));
  const weights = new Set(parts.map(({ weight }) => weight.key));
  const scales = new Map<string, CheckpointTensor>();
  for (const tensor of checkpoint.tensors.values()) {
    if (tensor.dtype !== "int8" || !weights.has(canonical_key(tensor.key))) continue;
    const rows = tensor.dims[0] ?? 0;
    const scale = checkpoint.tensors.get(tensor.key + SCALE_SUFFIX);
    if (scale?.dtype !== "float32" || scale.dims.length !== 1 || scale.dims[0] !== rows)
      throw bad_scale(tensor, scale, rows);
    scales.set(canonical_key(tensor.key), scale);
  }
  return scales;
}

function bad_scale(tensor: CheckpointTensor, scale: CheckpointTensor | undefined, rows: number): VitMsnError {
  const key = tensor.key + SCALE_SUFFIX;
  const found = scale ? `but it is ${scale.dtype} [${scale.dims.join(", ")}]` : "but there is none";
  return new VitMsnError(
    "INVALID_CHECKPOINT",
    `${tensor.file}: the int8 weight "${tensor.key}" needs its scales as "${key}", float32 [${rows}], ${found}.`,
    { details: { file: tensor.file, key } },
  );
}

/** The engine would refuse them too, but can't name the scales' key. */
export function check_scales(tensor: CheckpointTensor, bytes: Uint8Array, first: number): void {
  const view = view_of(bytes);
  for (let offset = 0; offset < bytes.byteLength; offset += 4) {
    const scale = view.getFloat32(offset, true);
    if (scale > 0 && scale < Number.POSITIVE_INFINITY) continue;
    throw new VitMsnError(
      "INVALID_CHECKPOINT",
      `${tensor.file}: key "${tensor.key}": element ${first + offset / 4} is ${scale}, but scales are finite and above 0.`,
      { details: { file: tensor.file, key: tensor.key } },
    );
  }
}
