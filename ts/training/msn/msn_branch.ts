import type { TensorHandle } from "../../engine/engine.ts";
import type { TrainingEngine } from "../../engine/training_engine.ts";
import type { ForwardInputs } from "../../model/inputs.ts";
import type { ViTMSNModel } from "../../model/modeling_vit_msn.ts";
import { create_weights, type Weights } from "../../model/weights.ts";
import { type Learnable, Parameters } from "../parameters.ts";
import type { Tape } from "../tape.ts";
import {
  type HeadSizes,
  head_modules,
  type PretrainingForwardEngine,
  project,
  RunningStatistics,
} from "./msn_head.ts";

/** An encoder with its projection head: the online branch, or the target that follows it. */
export class MSNBranch {
  readonly encoder: ViTMSNModel;
  readonly parameters: Parameters;
  readonly running: RunningStatistics;
  readonly #engine: TrainingEngine;
  /** Encoder and head. */
  readonly #weights: Weights;
  readonly #head: Weights;

  private constructor(encoder: ViTMSNModel, head: Weights, hidden_dim: number) {
    this.encoder = encoder;
    this.#engine = encoder.engine as TrainingEngine;
    this.#head = head;
    this.#weights = encoder.weights.with(head);
    this.running = new RunningStatistics(this.#engine, hidden_dim);
    const learnable: Learnable = {
      config: encoder.config,
      engine: encoder.engine,
      weights: this.#weights,
      device: encoder.device,
      dtype: encoder.dtype,
      weights_changed: () => encoder.weights_changed(),
    };
    this.parameters = new Parameters(learnable);
  }

  /** An encoder with a fresh head. */
  static async create(encoder: ViTMSNModel, sizes: HeadSizes, seed: number): Promise<MSNBranch> {
    const { initializer_range } = encoder.config;
    const modules = head_modules(sizes);
    const head = await create_weights(encoder.engine, modules, "float32", new Map(), {
      seed,
      initializer_range,
    });
    return new MSNBranch(encoder, head, sizes.hidden_dim);
  }

  /** Another branch on the same engine, with copies of the parameters. */
  async copy(sizes: HeadSizes): Promise<MSNBranch> {
    const { engine, config } = this.encoder;
    const { modules } = this.encoder.weights;
    const { initializer_range } = config;
    const weights = await create_weights(engine, modules, "float32", new Map(), {
      seed: 0,
      initializer_range,
    });
    const branch = await MSNBranch.create(this.encoder.with_weights(weights), sizes, 0);
    branch.follow(this, 0);
    return branch;
  }

  /** The projections [B, output_dim] of images, on a tape; the caller frees them. */
  async project(inputs: ForwardInputs, tape: Tape): Promise<TensorHandle> {
    return this.encoder.with_cls(inputs, async (cls) => this.project_cls(cls, tape), tape);
  }

  /** The projections [B, output_dim] of CLS tokens [B, D], on the engine or a tape around it; the caller frees them. */
  project_cls(cls: TensorHandle, engine: PretrainingForwardEngine = this.#engine): TensorHandle {
    return project(engine, this.#weights, this.running, cls);
  }

  /**
   * Moves the parameters towards another branch's, by an exponential moving average with `momentum`; running
   * statistics don't change.
   */
  follow(other: MSNBranch, momentum: number): void {
    for (const [i, { value }] of this.parameters.all.entries()) {
      this.#engine.ema(value, (other.parameters.all[i] as { value: TensorHandle }).value, momentum);
    }
    this.parameters.write_back();
  }

  /** Frees everything but the encoder's weights. */
  async dispose(): Promise<void> {
    await this.parameters.dispose();
    this.running.free();
    this.#head.free();
  }
}
