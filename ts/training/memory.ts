import { numel } from "../dims.ts";
import { parameters_of } from "../model/architecture.ts";
import type { ViTMSNConfig } from "../model/configuration_vit_msn.ts";
import type { Weights } from "../model/weights.ts";
import { layers_per_checkpoint } from "./checkpointing.ts";

const FLOAT_BYTES = 4;

/** The memory that one engine can address: WebAssembly's. Estimates use it on GPUs, too, so that results don't depend on the device. */
export const MAX_ENGINE_BYTES = 2 ** 32;

/**
 * Bytes of activations that an image of `tokens` tokens (CLS included) stores for its gradient. A layer stores the
 * inputs of both norms and of its four linear layers, queries, keys and values, attention's result, and the MLP's
 * hidden layer before and after the activation.
 */
export function activation_bytes(
  { hidden_size, intermediate_size, num_hidden_layers }: ViTMSNConfig,
  tokens: number,
  gradient_checkpointing: boolean,
): number {
  const state = FLOAT_BYTES * tokens * hidden_size;
  const layer = FLOAT_BYTES * tokens * (8 * hidden_size + 2 * intermediate_size);
  if (!gradient_checkpointing) return num_hidden_layers * layer + state;
  const segment = layers_per_checkpoint(num_hidden_layers);
  return Math.ceil(num_hidden_layers / segment) * state + segment * layer;
}

/** The number of values of a model's parameters. */
export function parameter_count({ modules }: Weights): number {
  return modules.flatMap(parameters_of).reduce((sum, { dims }) => sum + numel(dims), 0);
}

/** Bytes as "1.3 GB". */
export function show_bytes(bytes: number): string {
  return bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
