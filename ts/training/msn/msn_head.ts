import { type Engine, Scope, type TensorHandle } from "../../engine/engine.ts";
import type { PretrainingOps, TrainingEngine } from "../../engine/training_engine.ts";
import type { LinearSpec, ModuleSpec, TensorSpec } from "../../model/architecture.ts";
import type { Weights } from "../../model/weights.ts";

/** torch.nn.BatchNorm1d's defaults. */
const EPS = 1e-5;
const RUNNING_MOMENTUM = 0.1;

export interface HeadSizes {
  in_features: number;
  hidden_dim: number;
  output_dim: number;
}

/** The names of its batch norms, which have running statistics. */
export const HEAD_NORMS = ["head.bn1", "head.bn2"] as const;

/** An engine, or a tape around one, that a forward pass runs on. */
export type PretrainingForwardEngine = Engine & PretrainingOps;

/**
 * The parameters of MSN's projection head: fc1, bn1, GELU, fc2, bn2, GELU, fc3. Names are those of the
 * original checkpoints with "head." for "fc."; values start as in the original, from N(0, 0.02) and zeros.
 */
export function head_modules({ in_features, hidden_dim, output_dim }: HeadSizes): ModuleSpec[] {
  return [
    linear("head.fc1", hidden_dim, in_features),
    ...batch_norm("head.bn1", hidden_dim),
    linear("head.fc2", hidden_dim, hidden_dim),
    ...batch_norm("head.bn2", hidden_dim),
    linear("head.fc3", output_dim, hidden_dim),
  ];
}

function linear(name: string, out_features: number, in_features: number): LinearSpec {
  const weight = { key: `${name}.weight`, dims: [out_features, in_features], init: "normal" } as const;
  const bias = { key: `${name}.bias`, dims: [out_features], init: "zeros" } as const;
  const parts = [{ row: 0, rows: out_features, weight, bias }];
  return { kind: "linear", name, out_features, in_features, parts, quantisable: false };
}

function batch_norm(name: string, features: number): TensorSpec[] {
  return [
    { kind: "tensor", key: `${name}.weight`, dims: [features], init: "ones" },
    { kind: "tensor", key: `${name}.bias`, dims: [features], init: "zeros" },
  ];
}

/** Running statistics of the head's batch norms, stored for other programs; nothing here reads them. */
export class RunningStatistics {
  readonly #engine: TrainingEngine;
  readonly #handles = new Map<string, TensorHandle>();

  constructor(engine: TrainingEngine, hidden_dim: number) {
    this.#engine = engine;
    for (const norm of HEAD_NORMS) {
      this.#handles.set(`${norm}.running_mean`, engine.tensor(new Float32Array(hidden_dim), [hidden_dim]));
      const ones = new Float32Array(hidden_dim).fill(1);
      this.#handles.set(`${norm}.running_var`, engine.tensor(ones, [hidden_dim]));
    }
  }

  /** The tensors by name. */
  entries(): Iterable<[string, TensorHandle]> {
    return this.#handles;
  }

  /** Adds a batch's statistics to the moving averages. */
  add(norm: string, mean: TensorHandle, variance: TensorHandle): void {
    const keep = 1 - RUNNING_MOMENTUM;
    this.#engine.ema(this.#handles.get(`${norm}.running_mean`) as TensorHandle, mean, keep);
    this.#engine.ema(this.#handles.get(`${norm}.running_var`) as TensorHandle, variance, keep);
  }

  free(): void {
    for (const handle of this.#handles.values()) this.#engine.free(handle);
    this.#handles.clear();
  }
}

/**
 * The head's output [B, output_dim] of CLS tokens [B, D], with the statistics of this batch; the caller frees
 * it.
 */
export function project(
  engine: PretrainingForwardEngine,
  weights: Weights,
  running: RunningStatistics,
  cls: TensorHandle,
): TensorHandle {
  const scope = new Scope(engine);
  try {
    let x = cls;
    for (const [i, norm] of HEAD_NORMS.entries()) {
      const inner = scope.use(engine.linear(x, weights.linear(`head.fc${i + 1}`), "identity"));
      const [scale, shift] = [weights.tensor(`${norm}.weight`), weights.tensor(`${norm}.bias`)];
      const { y, mean, variance } = engine.batch_norm(inner, scale, shift, EPS);
      for (const handle of [y, mean, variance]) scope.use(handle);
      running.add(norm, mean, variance);
      x = scope.use(engine.activate(y, "gelu"));
    }
    return engine.linear(x, weights.linear("head.fc3"), "identity");
  } finally {
    scope.close();
  }
}
