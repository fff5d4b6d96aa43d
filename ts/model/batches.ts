/**
 * Batches that are too large for a device: it can't bind their activations as one tensor, or one op would block it for
 * too long. They are computed a few images at a time, and the outputs are joined.
 */
import { DeviceTensor } from "../device_tensor.ts";
import { concatenate, Tensor } from "../tensor.ts";
import { check_mask, check_pixel_values, check_visible_patches, type ForwardInputs } from "./inputs.ts";
import type { ModelOutput } from "./outputs.ts";
import type { PreTrainedModel } from "./pretrained.ts";

const FLOAT_BYTES = 4;

/**
 * Splits inputs that don't fit as one batch; undefined if they fit.
 * @throws VitMsnError INVALID_ARGUMENT if the inputs don't fit each other or the model.
 */
export async function by_batches<I extends ForwardInputs>(
  { engine, config }: PreTrainedModel<never, unknown>,
  inputs: I,
): Promise<Batches<I> | undefined> {
  const most = engine.max_tensor_bytes;
  const { pixel_values, bool_masked_pos, visible_patches } = inputs;
  // The forward pass itself refuses anything that isn't a batch of images.
  if (most === undefined || !(pixel_values instanceof Tensor) || pixel_values.dims.length !== 4)
    return undefined;
  const [batch, channels, height, width] = pixel_values.dims as [number, number, number, number];
  const { patch_grid, hidden_size, intermediate_size } = config;
  const num_patches = Math.floor(height / patch_grid.height) * Math.floor(width / patch_grid.width);
  const [plane, tokens] = [channels * height * width, 1 + num_patches];
  const widest = Math.max(plane, tokens * Math.max(3 * hidden_size, intermediate_size));
  // The MLP's layers or attention. A device runs several short ops one after another, but not parts of a long one.
  const longest = 2 * tokens * hidden_size * Math.max(intermediate_size, 2 * tokens);
  const fit = Math.min(most / (FLOAT_BYTES * widest), (engine.work_limit ?? Infinity) / longest);
  const step = Math.max(1, Math.floor(fit));
  if (step >= batch) return undefined;
  const pixels = check_pixel_values(pixel_values, config, inputs.interpolate_pos_encoding ?? false);
  const visible = visible_patches && check_visible_patches(visible_patches, batch, num_patches);
  const num_visible = visible?.num_visible ?? 0;
  const { values } = pixels;
  const data = values instanceof DeviceTensor ? await values.getData() : values;
  const mask = bool_masked_pos && check_mask(bool_masked_pos, batch, num_patches);
  const batches = Array.from({ length: Math.ceil(batch / step) }, (_, i) => {
    const [first, count] = [i * step, Math.min(step, batch - i * step)];
    const of = <A extends { subarray(begin: number, end: number): A }>(array: A, each: number) =>
      array.subarray(first * each, (first + count) * each);
    return {
      ...inputs,
      pixel_values: new Tensor("float32", of(data, plane), [count, channels, height, width]),
      ...(mask && { bool_masked_pos: new Tensor("uint8", of(mask, num_patches), [count, num_patches]) }),
      ...(visible && {
        visible_patches: new Tensor("int32", Int32Array.from(of(visible.patches, num_visible)), [
          count,
          num_visible,
        ]),
      }),
    };
  });
  return new Batches(batches);
}

/** A batch in parts of a few images each. */
class Batches<I> {
  readonly #inputs: readonly I[];

  constructor(inputs: readonly I[]) {
    this.#inputs = inputs;
  }

  /** The outputs of all parts, joined along the batch. */
  async join_outputs<O extends ModelOutput>(forward: (inputs: I) => Promise<O>): Promise<O> {
    const outputs = (await this.#all(forward)) as unknown as Record<string, Joinable>[];
    const names = Object.keys(outputs[0] as object);
    const joined = names.map((name) => [name, join(outputs.map((output) => output[name] as Joinable))]);
    return Object.fromEntries(joined) as O;
  }

  /** The tensors of all parts, joined along the batch. */
  async join_tensors(forward: (inputs: I) => Promise<Tensor<"float32">>): Promise<Tensor<"float32">> {
    return concatenate(await this.#all(forward));
  }

  /** Waits for all, even if one fails. */
  async #all<T>(forward: (inputs: I) => Promise<T>): Promise<T[]> {
    const settled = await Promise.allSettled(this.#inputs.map(forward));
    return settled.map((each) => {
      if (each.status === "rejected") throw each.reason;
      return each.value;
    });
  }
}

type Joinable = Tensor<"float32"> | Tensor<"float32">[];

function join(parts: Joinable[]): Joinable {
  const [first] = parts;
  if (!Array.isArray(first)) return concatenate(parts as Tensor<"float32">[]);
  return first.map((_, i) =>
    concatenate(parts.map((part) => (part as Tensor<"float32">[])[i] as Tensor<"float32">)),
  );
}

/** [B, D] and [B, D] as [B, 2 · D]. */
export function side_by_side([left, right]: readonly [
  Tensor<"float32">,
  Tensor<"float32">,
]): Tensor<"float32"> {
  const [rows, width] = left.dims as [number, number];
  const data = new Float32Array(2 * left.size);
  for (let row = 0; row < rows; row++) {
    const [first, last] = [row * width, (row + 1) * width];
    data.set(left.data.subarray(first, last), 2 * first);
    data.set(right.data.subarray(first, last), 2 * first + width);
  }
  return new Tensor("float32", data, [rows, 2 * width]);
}
