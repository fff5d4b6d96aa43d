import { DeviceTensor } from "../device_tensor.ts";
import type { Engine, Grid, TensorHandle } from "../engine/engine.ts";
import { invalid_argument as invalid, show } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { abort_signal, any, flag, type Rule, type Rules } from "../options.ts";
import { check_elements, numbers_of, Tensor } from "../tensor.ts";
import type { ViTMSNConfig } from "./configuration_vit_msn.ts";

/** The arguments of every forward. */
export interface ForwardInputs {
  /** float32 [batch, num_channels, height, width] from the image processor, in memory or on the model's GPU. */
  pixel_values: Tensor;
  /** [batch, num_patches] of 0 and 1 (or booleans): the mask token replaces patches with 1. */
  bool_masked_pos?: Tensor | readonly (readonly (boolean | number)[])[];
  /**
   * Which patches the encoder sees, by index in row-major order: [batch, num_visible], or one list for all images. The
   * others are dropped after positions are added, as in MSN's pre-training, and cost no time. Outputs have 1 +
   * num_visible tokens, in this order. Default: all.
   */
  visible_patches?: Tensor | readonly number[] | readonly (readonly number[])[];
  /** Accept images of another size than config.image_size; default false. */
  interpolate_pos_encoding?: boolean;
  /** Default config.output_attentions. Under "sdpa" these layers are then computed eagerly. */
  output_attentions?: boolean;
  /** Default config.output_hidden_states. */
  output_hidden_states?: boolean;
  /** Stops between layers with ABORTED. */
  signal?: AbortSignal;
}

const numbers: Rule = ["a Tensor or an array", (value) => value instanceof Tensor || Array.isArray(value)];

/** The rules for ForwardInputs, and for the other values that an image processor returns with pixel_values. */
export const INPUT_RULES: Rules = {
  pixel_values: any,
  bool_masked_pos: numbers,
  visible_patches: numbers,
  interpolate_pos_encoding: flag,
  output_attentions: flag,
  output_hidden_states: flag,
  signal: abort_signal,
  original_sizes: any,
  reshaped_input_sizes: any,
};

export const LABEL_RULES: Rules = { labels: numbers };

/** pixel_values and their grid of patches. */
export interface CheckedPixels {
  values: Float32Array | DeviceTensor;
  dims: readonly [number, number, number, number];
  grid: Grid;
}

/**
 * Checks pixel_values against the config, like the reference's ViTMSNPatchEmbeddings.
 * @throws VitMsnError INVALID_ARGUMENT on a wrong type, rank, channel count or size, and on values that aren't finite.
 */
export function check_pixel_values(
  pixel_values: unknown,
  config: ViTMSNConfig,
  interpolate_pos_encoding: boolean,
): CheckedPixels {
  if (!(pixel_values instanceof Tensor)) {
    throw invalid("pixel_values must be a Tensor; create it with ViTImageProcessor.", "pixel_values");
  }
  if (pixel_values.type !== "float32") {
    throw invalid(
      `pixel_values must be a float32 Tensor, got ${pixel_values.type}; ViTImageProcessor creates one.`,
      "pixel_values",
    );
  }
  const dims = pixel_values.dims;
  if (dims.length !== 4 || dims.some((d) => d < 1)) {
    throw invalid(
      `pixel_values must have shape [batch, channels, height, width], got [${dims.join(", ")}].`,
      "pixel_values",
    );
  }
  const [batch, channels, height, width] = dims as [number, number, number, number];
  if (channels !== config.num_channels) {
    throw invalid(
      `pixel_values has ${channels} channels, but the model takes ${config.num_channels} (config.num_channels).`,
      "pixel_values",
    );
  }
  check_size(height, width, config, interpolate_pos_encoding);
  check_elements(pixel_values, "pixel_values");
  const values = pixel_values instanceof DeviceTensor ? pixel_values : (pixel_values.data as Float32Array);
  if (is_a(values, "Float32Array")) check_finite(values, "pixel_values");
  const patch = config.patch_grid;
  const grid = { height: Math.floor(height / patch.height), width: Math.floor(width / patch.width) };
  return { values, dims: [batch, channels, height, width], grid };
}

/** The pixels on an engine. The caller still owns those that were already there. */
export function pixels_on(
  engine: Engine,
  { values, dims }: CheckedPixels,
): { handle: TensorHandle; is_own: boolean } {
  if (is_a(values, "Float32Array")) return { handle: engine.tensor(values, dims), is_own: true };
  return { handle: values.on(engine) as TensorHandle, is_own: false };
}

/** The inputs for an engine: pixels on another engine are copied. */
export async function inputs_for<I extends ForwardInputs>(engine: Engine, inputs: I): Promise<I> {
  const { pixel_values } = inputs;
  if (!(pixel_values instanceof DeviceTensor) || pixel_values.on(engine) !== undefined) return inputs;
  const data = await pixel_values.getData();
  return { ...inputs, pixel_values: new Tensor("float32", data, pixel_values.dims) };
}

/** @throws VitMsnError INVALID_ARGUMENT if a model can't take pixels of this size. */
export function check_size(height: number, width: number, config: ViTMSNConfig, interpolate: boolean): void {
  const { image_grid: image, patch_grid: patch } = config;
  if (!interpolate && (height !== image.height || width !== image.width)) {
    throw invalid(
      `Input image size (${height}×${width}) doesn't match the model's (${image.height}×${image.width}); ` +
        "resize the image, or pass interpolate_pos_encoding: true.",
      "pixel_values",
    );
  }
  if (height < patch.height || width < patch.width) {
    throw invalid(
      `Input image size (${height}×${width}) is smaller than one patch (${patch.height}×${patch.width}).`,
      "pixel_values",
    );
  }
}

function check_finite(data: Float32Array, name: string): void {
  // 0 · x is 0 for finite x, else NaN: one sum takes a tenth of the time of testing every value.
  let zero = 0;
  for (let index = 0; index < data.length; index++) zero += 0 * (data[index] as number);
  if (zero === 0) return;
  const bad = data.findIndex((x) => !Number.isFinite(x));
  throw invalid(`${name} holds ${data[bad]} at index ${bad}; every value must be a finite number.`, name);
}

/**
 * The mask as bytes [batch · num_patches].
 * @throws VitMsnError INVALID_ARGUMENT on a wrong shape or on values other than 0 and 1.
 */
export function check_mask(
  mask: NonNullable<ForwardInputs["bool_masked_pos"]>,
  batch: number,
  num_patches: number,
): Uint8Array {
  const dims =
    mask instanceof Tensor ? mask.dims : [mask.length, ...new Set(mask.map((row) => Number(row?.length)))];
  if (dims.length !== 2 || dims[0] !== batch || dims[1] !== num_patches) {
    throw invalid(
      `bool_masked_pos must have shape [batch, num_patches] = [${batch}, ${num_patches}], got [${dims.join(", ")}].`,
      "bool_masked_pos",
    );
  }
  const values: readonly unknown[] = mask instanceof Tensor ? numbers_of(mask) : mask.flat();
  if (values.some((x) => x !== 0 && x !== 1 && typeof x !== "boolean")) {
    throw invalid("bool_masked_pos must hold only 0 and 1, or booleans.", "bool_masked_pos");
  }
  return Uint8Array.from(values, Number);
}

/** The indices [batch · num_visible] of the visible patches. */
export interface VisiblePatches {
  patches: Uint32Array;
  num_visible: number;
}

/**
 * The visible patches of each image.
 * @throws VitMsnError INVALID_ARGUMENT on a wrong shape, on patches that don't exist and on duplicates.
 */
export function check_visible_patches(
  visible: NonNullable<ForwardInputs["visible_patches"]>,
  batch: number,
  num_patches: number,
): VisiblePatches {
  const rows = rows_of(visible);
  const each = rows.length === 1 ? Array.from({ length: batch }, () => rows[0] as number[]) : rows;
  const num_visible = each[0]?.length ?? 0;
  if (each.length !== batch || num_visible < 1 || each.some((row) => row.length !== num_visible)) {
    throw invalid(
      `visible_patches must be one list of patches, or lists of one length for each of the ${batch} images; ` +
        `got rows of ${rows.map((row) => row.length).join(", ")}.`,
      "visible_patches",
    );
  }
  for (const row of rows) {
    const bad = row.find((x) => !Number.isInteger(x) || x < 0 || x >= num_patches);
    if (bad !== undefined) {
      throw invalid(
        `visible_patches holds ${show(bad)}; a patch is an integer from 0 to ${num_patches - 1}.`,
        "visible_patches",
      );
    }
    if (new Set(row).size !== num_visible)
      throw invalid("visible_patches contains a patch twice.", "visible_patches");
  }
  return { patches: Uint32Array.from(each.flat()), num_visible };
}

function rows_of(visible: NonNullable<ForwardInputs["visible_patches"]>): number[][] {
  if (visible instanceof Tensor) {
    const values = numbers_of(visible);
    const num_visible = visible.dims.at(-1) ?? 0;
    if (visible.dims.length > 2 || num_visible === 0) return [];
    return Array.from({ length: values.length / num_visible }, (_, i) =>
      values.slice(i * num_visible, (i + 1) * num_visible),
    );
  }
  const nested = visible.some((row) => Array.isArray(row));
  return (nested ? visible.map((row) => [row].flat()) : [[...visible]]) as number[][];
}
