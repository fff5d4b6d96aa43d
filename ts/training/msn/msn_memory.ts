import { VitMsnError } from "../../errors.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { activation_bytes, MAX_ENGINE_BYTES, parameter_count, show_bytes } from "../memory.ts";
import type { MSNPretrainingArguments } from "./msn_arguments.ts";

/** Online and target values, each also packed for its kernels; gradients; AdamW's two moments. */
const BYTES_PER_PARAMETER = 7 * 4;
/** Prototypes have no target and aren't packed. */
const BYTES_PER_PROTOTYPE_VALUE = 4 * 4;
/** The share of the remaining memory that activations may take; the rest is for gradients in flight and for gaps. */
const ACTIVATION_SHARE = 0.6;

/** How a step's views pass the encoder within the engine's memory. */
export interface EncoderBatches {
  /** Whether all views of the step are stored at once. Otherwise activations are recomputed, batch by batch. */
  readonly is_whole: boolean;
  /** The views of `tokens` tokens that pass the encoder together. */
  size(tokens: number): number;
}

/** A group of `rows` views of `tokens` tokens each. */
export interface GroupSize {
  rows: number;
  tokens: number;
}

/**
 * Decides how many views pass the encoder together: encoder_batch_size, or as many as the memory holds by an estimate
 * from the sizes of model, head and batch.
 * @param groups the step's anchors.
 * @throws VitMsnError OUT_OF_MEMORY if not even one view fits.
 */
export function plan_encoder_batches(
  { config, weights }: ViTMSNModel,
  args: MSNPretrainingArguments,
  groups: readonly GroupSize[],
): EncoderBatches {
  const { encoder_batch_size: size, gradient_checkpointing } = args;
  const bytes_of = (tokens: number) => activation_bytes(config, tokens, gradient_checkpointing);
  const rows = groups.reduce((sum, group) => sum + group.rows, 0);
  const largest = Math.max(...groups.map(({ tokens }) => bytes_of(tokens)));
  const fixed = state_bytes(parameter_count(weights), config.hidden_size, args) + head_bytes(rows, args);
  const available = ACTIVATION_SHARE * (MAX_ENGINE_BYTES - fixed);
  if (largest > available) throw too_large(fixed, largest);
  if (size !== undefined) return { is_whole: groups.every((group) => group.rows <= size), size: () => size };
  const whole = groups.reduce((sum, { rows, tokens }) => sum + rows * bytes_of(tokens), 0);
  return {
    is_whole: whole <= available,
    size: (tokens) => Math.max(1, Math.floor(available / bytes_of(tokens))),
  };
}

/** Parameters, gradients and moments of both branches, and the prototypes'. */
function state_bytes(
  encoder: number,
  hidden_size: number,
  { hidden_dim, output_dim, num_proto }: MSNPretrainingArguments,
): number {
  const head = hidden_dim * (hidden_size + hidden_dim + output_dim);
  return BYTES_PER_PARAMETER * (encoder + head) + BYTES_PER_PROTOTYPE_VALUE * num_proto * output_dim;
}

/** What the head stores for its gradient: three times each hidden layer, its output, and the logits and their gradient. */
function head_bytes(rows: number, { hidden_dim, output_dim, num_proto }: MSNPretrainingArguments): number {
  return 4 * rows * (6 * hidden_dim + 2 * output_dim + 2 * num_proto);
}

function too_large(fixed: number, view: number): VitMsnError {
  return new VitMsnError(
    "OUT_OF_MEMORY",
    `This run needs about ${show_bytes(fixed)} for parameters, optimiser and head, and ${show_bytes(view)} for the activations of each ` +
      `view, more than the ${show_bytes(MAX_ENGINE_BYTES)} that the engine can address. Use gradient_checkpointing, a smaller ` +
      "per_device_train_batch_size, fewer views, or a smaller model.",
    { details: { parameter_bytes: fixed, view_bytes: view, max_bytes: MAX_ENGINE_BYTES } },
  );
}
