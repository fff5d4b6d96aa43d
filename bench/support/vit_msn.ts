import type { ViTMSNConfigInit } from "../../ts/model/configuration_vit_msn.ts";
import { Tensor } from "../../ts/tensor.ts";

/** The released architectures that are measured. */
export const SIZES = {
  small: { hidden_size: 384, num_attention_heads: 6, intermediate_size: 1536, num_labels: 1000 },
  base: { num_labels: 1000 },
} as const satisfies Record<string, ViTMSNConfigInit>;
export type Size = keyof typeof SIZES;

/** What `--size` names; all sizes by default. */
export function chosen_sizes(name: string | undefined): Size[] {
  const all = Object.keys(SIZES) as Size[];
  if (name === undefined) return all;
  if (!all.includes(name as Size)) throw new Error(`--size is one of ${all.join(", ")}.`);
  return [name as Size];
}

/** Uniform values in [-1, 1), the same in every run. */
export function noise(length: number, seed = 1): Float32Array {
  let state = seed >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return state / 2 ** 31 - 1;
  });
}

/** A batch of images as the processor would give it. */
export function images(batch: number, height = 224, width = 224): Tensor<"float32"> {
  return new Tensor("float32", noise(batch * 3 * height * width), [batch, 3, height, width]);
}

/** A smooth image with some noise, which compresses about as a photograph does. */
export function smooth_image(width: number, height: number): Uint8Array {
  const grain = noise(width * height * 3);
  return Uint8Array.from(grain, (value, i) => {
    const [x, y, c] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width), i % 3];
    return 127 + 100 * Math.sin(x / (50 + 30 * c) + y / (90 + c)) + 12 * value;
  });
}
