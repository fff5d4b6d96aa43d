import fc from "fast-check";
import type { ViTMSNConfigInit } from "vit-msn";
import { ACTIVATIONS } from "../../ts/engine/engine.ts";

/** How a forward pass is disturbed, after a number of turns of the microtask queue. */
export type Disturbance = { kind: "none" } | { kind: "abort" | "dispose"; after: number };

/** One forward pass of a case; whole numbers where a choice depends on sizes that are drawn with it. */
export interface ForwardCase {
  batch: number;
  /** Patches and left-over pixels of an image of another size; undefined: the model's own. */
  other_size: { rows: number; columns: number; rest: number } | undefined;
  /** The percentage of visible patches, and whether each image has its own. */
  visible: { percent: number; each: boolean } | undefined;
  /** The percentage of patches that the mask token replaces. */
  masked: number | undefined;
  output_hidden_states: boolean;
  output_attentions: boolean;
  labels: boolean;
  /** A mistake in the input, which must be refused. */
  mistake: "channels" | "rank" | "NaN" | "visible" | undefined;
  disturbance: Disturbance;
  seed: number;
}

/** A model and what is asked of it, at once. */
export interface StressCase {
  classifier: boolean;
  config: ViTMSNConfigInit;
  dtype: "float32" | "float16" | "bfloat16" | "int8";
  num_threads: number;
  /** Whether the engine that is disturbed is in a Worker. */
  worker: boolean;
  seed: number;
  forwards: ForwardCase[];
}

const integer = (min: number, max: number) => fc.integer({ min, max });

const disturbance: fc.Arbitrary<Disturbance> = fc.oneof(
  { weight: 6, arbitrary: fc.constant<Disturbance>({ kind: "none" }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("abort" as const), after: integer(0, 30) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("dispose" as const), after: integer(0, 30) }) },
);

const rarely = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { freq: 2, nil: undefined });

const forward: fc.Arbitrary<ForwardCase> = fc.record({
  batch: integer(1, 4),
  other_size: rarely(fc.record({ rows: integer(1, 20), columns: integer(1, 20), rest: integer(0, 1) })),
  visible: rarely(fc.record({ percent: integer(0, 100), each: fc.boolean() })),
  masked: rarely(integer(0, 100)),
  output_hidden_states: fc.boolean(),
  output_attentions: fc.boolean(),
  labels: fc.boolean(),
  mistake: fc.option(fc.constantFrom("channels", "rank", "NaN", "visible"), { freq: 12, nil: undefined }),
  disturbance,
  seed: integer(1, 2 ** 31 - 1),
});

const config: fc.Arbitrary<ViTMSNConfigInit> = fc
  .record({
    heads: integer(1, 6),
    head_dim: integer(1, 40),
    layers: integer(1, 4),
    intermediate_size: integer(1, 200),
    patch_size: fc.tuple(integer(1, 6), integer(1, 6)),
    // Up to 19 × 19 patches: more than a block of attention's keys.
    grid: fc.oneof(
      { weight: 4, arbitrary: fc.tuple(integer(1, 8), integer(1, 8)) },
      { weight: 1, arbitrary: fc.tuple(integer(12, 19), integer(12, 19)) },
    ),
    num_channels: integer(1, 4),
    hidden_act: fc.constantFrom(...ACTIVATIONS.filter((name) => name !== "identity")),
    qkv_bias: fc.boolean(),
    num_labels: integer(1, 20),
    // Attention is nearly uniform with small weights, and sharp with large ones.
    initializer_range: fc.constantFrom(0.02, 0.1, 0.2),
  })
  .map(({ heads, head_dim, layers, grid, patch_size, ...fields }) => ({
    ...fields,
    hidden_size: heads * head_dim,
    num_attention_heads: heads,
    num_hidden_layers: layers,
    patch_size,
    image_size: [grid[0] * patch_size[0], grid[1] * patch_size[1]] as const,
  }));

const stress_case: fc.Arbitrary<StressCase> = fc.record({
  classifier: fc.boolean(),
  config,
  dtype: fc.constantFrom("float32", "float16", "bfloat16", "int8"),
  num_threads: integer(1, 3),
  worker: fc.boolean(),
  seed: integer(0, 2 ** 31 - 1),
  forwards: fc.array(forward, { minLength: 1, maxLength: 4 }),
});

/** The case of a seed, the same in every run. */
export function draw_case(seed: number): StressCase {
  // Without the bias towards the ends of the ranges, which fast-check has for short runs.
  return fc.sample(fc.noBias(stress_case), { seed, numRuns: 1 })[0] as StressCase;
}

/** Numbers in [0, 1) from a seed. */
export function make_random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return state / 2 ** 32;
  };
}
