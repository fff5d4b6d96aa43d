import { export_weights } from "../../ts/model/export_weights.ts";
import type { ViTMSNForImageClassification } from "../../ts/model/modeling_vit_msn.ts";

/** A model's parameters in the hub's key layout without its prefix. */
export type WeightsByKey = ReadonlyMap<string, { data: Float32Array; dims: readonly number[] }>;

export async function read_weights(model: ViTMSNForImageClassification): Promise<WeightsByKey> {
  const weights = new Map<string, { data: Float32Array; dims: readonly number[] }>();
  for (const { key, dims, byte_length, bytes } of export_weights(model.weights)) {
    const data = new Uint8Array(byte_length);
    let offset = 0;
    for await (const piece of bytes()) {
      data.set(piece, offset);
      offset += piece.length;
    }
    weights.set(key, { data: new Float32Array(data.buffer), dims });
  }
  return weights;
}

/** A matrix [rows, columns] as [columns, rows]. */
export function transpose(data: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++)
      out[column * rows + row] = data[row * columns + column] as number;
  }
  return out;
}
