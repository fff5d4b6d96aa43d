import type create_glue from "../generated/glue.js";
import type { TrainingEngine } from "../training_engine.ts";

/** The exports of a binary. Those of the WebGPU engine that copy values out return promises. */
export type Glue = ReturnType<typeof create_glue>;

const GRID = ["height", "width"];

/** Ops that take a record, and the order in which the binary takes its fields. */
const ARGUMENT_FIELDS = {
  patch_embed: GRID,
  patch_embed_backward: GRID,
  interpolate_positions: GRID,
  interpolate_positions_backward: GRID,
  embed_tokens: ["mask", "mask_token"],
  eager_attention_dropout: ["probability", "seed"],
  adamw_step: ["learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "step", "gradient_scale"],
  sgd_step: ["learning_rate", "momentum", "weight_decay", "nesterov", "first", "gradient_scale"],
  lars_step: ["learning_rate", "momentum", "weight_decay", "trust_coefficient", "epsilon", "gradient_scale"],
} satisfies Fields;

const CONTEXT_AND_PROBS = ["context", "probs"];
const WEIGHT_AND_BIAS = ["weight", "bias"];
const X_AND_PARAMETERS = ["x", ...WEIGHT_AND_BIAS];

/** Ops that return a record, and the order in which the binary returns the handles of its fields. */
const RESULT_FIELDS = {
  eager_attention: CONTEXT_AND_PROBS,
  eager_attention_dropout: CONTEXT_AND_PROBS,
  linear_backward_weights: WEIGHT_AND_BIAS,
  patch_embed_backward: WEIGHT_AND_BIAS,
  layer_norm_backward: X_AND_PARAMETERS,
  batch_norm_backward: X_AND_PARAMETERS,
  embed_tokens_backward: ["patches", "cls_token", "positions", "mask_token"],
  batch_norm: ["y", "mean", "variance"],
  prototype_logits_backward: ["x", "prototypes"],
  concat_rows_backward: ["x", "y"],
} satisfies Fields;

type Fields = { readonly [K in keyof TrainingEngine]?: readonly string[] };
type Exported = keyof TrainingEngine & keyof Glue;

/** The ops whose signature is the same in the binary, except for the records above. */
export type GlueOps = Pick<
  TrainingEngine,
  {
    [K in Exported]: K extends keyof typeof ARGUMENT_FIELDS
      ? K
      : Glue[K] extends (...args: Parameters<TrainingEngine[K]>) => unknown
        ? K
        : never;
  }[Exported]
>;

/** Calls an export with an op's arguments and returns the op's result. */
export function run_op(glue: Glue, name: keyof Glue, args: readonly unknown[]): unknown {
  const { [name]: taken } = ARGUMENT_FIELDS as Record<string, readonly string[]>;
  const { [name]: returned } = RESULT_FIELDS as Record<string, readonly string[]>;
  const run = glue[name] as unknown as (...args: unknown[]) => unknown;
  const result = run(...(taken ? args.flatMap((value) => fields_of(value, taken)) : args));
  const handles = result as Uint32Array;
  return returned ? Object.fromEntries(returned.map((field, i) => [field, handles[i]])) : result;
}

function fields_of(value: unknown, fields: readonly string[]): unknown {
  return typeof value === "object" ? fields.map((name) => (value as Record<string, unknown>)[name]) : [value];
}
