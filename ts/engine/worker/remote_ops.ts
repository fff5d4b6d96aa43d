/**
 * The engine's ops as data, for an engine that is called by messages: which of an op's arguments are handles, and the
 * dims of its results, which the caller needs before the op has run. A new op needs a line here;
 * docs/design/adding-an-op.md lists the other files.
 */
import type { Handle } from "../engine.ts";
import type { TrainingEngine } from "../training_engine.ts";

export type Dims = readonly number[];
/** The place of a handle: an argument, or a field of one. */
type Place = number | readonly [argument: number, field: string];

/** Methods that wait for an answer; their first argument is a handle. */
export const QUESTIONS = [
  "ready",
  "caught_up",
  "read",
  "parameter_bytes",
  "get_rows",
  "get_scales",
  "get_bias",
] as const;
/** Members that an engine has only for callers on its own thread. */
type Local =
  | "timing"
  | "tiled"
  | "is_lost"
  | "compile_ahead"
  | "forward_queue"
  | "max_tensor_bytes"
  | "work_limit"
  | "images";
export type Question = (typeof QUESTIONS)[number];
/** Methods that enqueue work and return handles, or change their first argument and return nothing. */
export type OpName = Exclude<keyof TrainingEngine, Question | "dims" | "free" | "memory" | "dispose" | Local>;

/** Handles replaced by their dims. */
type Shape<T> = T extends Handle ? Dims : T;
type Shapes<A extends unknown[]> = { [I in keyof A]: Shape<A[I]> };
type Results<R> = R extends Handle ? Dims : R extends object ? { [K in keyof R]: Shape<R[K]> } : R;

interface Op<F extends (...args: never[]) => unknown> {
  handles: readonly Place[];
  /** The dims of the results. Nothing is checked, since the op itself refuses shapes that don't fit. */
  dims: (...args: Shapes<Parameters<F>>) => Results<ReturnType<F>>;
}

const nothing = () => {};
const scalar = () => [1];
/** The dims of the first argument. */
const same = (x: Dims) => x;

/** The dims of linear weights are [out_features, in_features]. */
export const OPS: { readonly [K in OpName]: Op<TrainingEngine[K]> } = {
  tensor: { handles: [], dims: (_data, dims) => dims },
  parameter: { handles: [], dims: (_bytes, _from, _dtype, dims) => dims },
  linear_weights: { handles: [], dims: (out_features, in_features) => [out_features, in_features] },
  set_rows: { handles: [0], dims: nothing },
  set_quantised_rows: { handles: [0], dims: nothing },
  set_bias: { handles: [0], dims: nothing },
  linear: { handles: [0, 1, 3, 4], dims: (x, weights) => [...x.slice(0, -1), weights[0] ?? 0] },
  layer_norm: { handles: [0, 1, 2, 4], dims: same },
  scaled_dot_product_attention: { handles: [0, 2], dims: (qkv) => third(qkv) },
  eager_attention: { handles: [0], dims: context_and_probs },
  patch_embed: {
    handles: [0, 1],
    dims: ([batch = 0, , height = 0, width = 0], [features = 0], patch) => [
      batch,
      Math.floor(height / patch.height) * Math.floor(width / patch.width),
      features,
    ],
  },
  embed_tokens: {
    handles: [0, 1, 2, [3, "mask_token"]],
    dims: ([batch = 0, patches = 0, width = 0]) => [batch, 1 + patches, width],
  },
  take_tokens: {
    handles: [0],
    dims: ([batch = 0, , width = 0], _, num_visible) => [batch, 1 + num_visible, width],
  },
  interpolate_positions: {
    handles: [0],
    dims: (positions, _, to) => [1, 1 + to.height * to.width, positions.at(-1) ?? 0],
  },
  pool: { handles: [0], dims: ([batch = 0, , width = 0]) => [batch, width] },
  cross_entropy: { handles: [0], dims: scalar },
  mse_loss: { handles: [0, 1], dims: scalar },
  bce_with_logits: { handles: [0, 1], dims: scalar },

  set_linear: { handles: [0, 1, 2], dims: nothing },
  linear_weight: { handles: [0], dims: same },
  linear_bias: { handles: [0], dims: ([features = 0]) => [features] },
  activate: { handles: [0], dims: same },
  activate_backward: { handles: [0, 1], dims: same },
  linear_backward_input: {
    handles: [0, 1],
    dims: (grad, weights) => [...grad.slice(0, -1), weights[1] ?? 0],
  },
  linear_backward_weights: {
    handles: [0, 1],
    dims: (grad, x) => ({ weight: [grad.at(-1) ?? 0, x.at(-1) ?? 0], bias: [grad.at(-1) ?? 0] }),
  },
  layer_norm_backward: {
    handles: [0, 1, 2],
    dims: (_, x, weight) => ({ x, weight, bias: weight }),
  },
  scaled_dot_product_attention_backward: { handles: [0, 1, 2], dims: (_, qkv) => qkv },
  eager_attention_dropout: { handles: [0], dims: context_and_probs },
  eager_attention_backward: { handles: [0, 1, 2], dims: (_, qkv) => qkv },
  patch_embed_backward: {
    handles: [0, 1],
    dims: (grad, [, channels = 0], patch) => ({
      weight: [grad.at(-1) ?? 0, channels * patch.height * patch.width],
      bias: [grad.at(-1) ?? 0],
    }),
  },
  embed_tokens_backward: {
    handles: [0],
    dims: ([batch = 0, tokens = 0, width = 0], mask) => ({
      patches: [batch, tokens - 1, width],
      cls_token: [1, 1, width],
      positions: [1, tokens, width],
      mask_token: mask && [1, 1, width],
    }),
  },
  take_tokens_backward: {
    handles: [0],
    dims: ([batch = 0, , width = 0], _patches, _num_visible, tokens) => [batch, tokens, width],
  },
  interpolate_positions_backward: {
    handles: [0],
    dims: (grad, from) => [1, 1 + from.height * from.width, grad.at(-1) ?? 0],
  },
  pool_backward: { handles: [0], dims: ([batch = 0, width = 0], _, tokens) => [batch, tokens, width] },
  cross_entropy_smoothed: { handles: [0], dims: scalar },
  cross_entropy_backward: { handles: [0], dims: same },
  mse_loss_backward: { handles: [0, 1], dims: same },
  bce_with_logits_backward: { handles: [0, 1], dims: same },
  dropout: { handles: [0], dims: same },
  add: { handles: [0, 1], dims: same },
  accumulate: { handles: [0, 1], dims: nothing },
  sum_of_squares: { handles: [0], dims: scalar },
  batch_norm: { handles: [0, 1, 2], dims: (x, weight) => ({ y: x, mean: weight, variance: weight }) },
  batch_norm_backward: { handles: [0, 1, 2], dims: (_, x, weight) => ({ x, weight, bias: weight }) },
  batch_norm_inference: { handles: [0, 1, 2, 3, 4], dims: same },
  prototype_logits: {
    handles: [0, 1],
    dims: ([rows = 0], [prototypes = 0]) => [rows, prototypes],
  },
  prototype_logits_backward: { handles: [0, 1, 2], dims: (_, x, prototypes) => ({ x, prototypes }) },
  concat_rows: { handles: [0, 1], dims: ([rows = 0, width = 0], [more = 0]) => [rows + more, width] },
  concat_rows_backward: {
    handles: [0],
    dims: ([all = 0, width = 0], rows) => ({ x: [rows, width], y: [all - rows, width] }),
  },
  msn_targets: { handles: [0], dims: same },
  msn_loss: { handles: [0, 1], dims: () => [4] },
  msn_loss_backward: { handles: [0, 1], dims: same },
  ema: { handles: [0, 1], dims: nothing },
  adamw_step: { handles: [0, 1, 2, 3], dims: nothing },
  sgd_step: { handles: [0, 1, 2], dims: nothing },
  lars_step: { handles: [0, 1, 2], dims: nothing },
};

/** qkv [B, N, 3·D] -> [B, N, D]. */
function third([batch = 0, tokens = 0, width = 0]: Dims): number[] {
  return [batch, tokens, width / 3];
}

/** The results of eager attention of qkv [B, N, 3·D]. */
function context_and_probs(qkv: Dims, heads: number) {
  const [batch = 0, tokens = 0] = qkv;
  return { context: third(qkv), probs: [batch, heads, tokens, tokens] };
}

/** The arguments with their handles mapped; omitted ones stay omitted. */
export function map_handles(
  places: readonly Place[],
  args: readonly unknown[],
  map: (handle: number) => unknown,
): unknown[] {
  const mapped = [...args];
  for (const place of places) {
    const [index, field] = typeof place === "number" ? [place] : place;
    const argument = args[index];
    if (argument === undefined) continue;
    mapped[index] =
      field === undefined
        ? map(argument as number)
        : { ...argument, [field]: map((argument as Record<string, number>)[field] as number) };
  }
  return mapped;
}
