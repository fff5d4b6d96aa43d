import type { Engine } from "../engine/engine.ts";
import type { EngineInfo } from "../engine/engine_info.ts";
import type { Device } from "../engine/engine_options.ts";
import { VitMsnError } from "../errors.ts";
import type { Weights } from "./weights.ts";

/** An engine that holds a model's weights. */
export interface Running {
  engine: Engine;
  weights: Weights;
  device: Device;
  engine_info: EngineInfo;
}

/** A model's engine and weights, from loading to dispose(). A classifier shares them with its backbone. */
export class LoadedEngine {
  #running: Running;
  #load_again: (() => Promise<Running>) | undefined;
  /** Set while a lost device is opened again. */
  #reopening: Promise<void> | undefined;
  #disposed = false;

  /** @param load_again loads the same files again after the device was lost; undefined if they are gone. */
  constructor(running: Running, load_again: (() => Promise<Running>) | undefined) {
    this.#running = running;
    this.#load_again = load_again;
  }

  get running(): Running {
    return this.#running;
  }

  /** If the device was lost, waits until it is open again. */
  async ready(): Promise<void> {
    if (!this.#running.engine.is_lost) return;
    this.#reopening ??= this.#open_again().finally(() => {
      this.#reopening = undefined;
    });
    await this.#reopening;
  }

  /** Call when the weights no longer equal the files, which then can't restore them after a device loss. */
  weights_changed(): void {
    this.#load_again = undefined;
  }

  check_alive(): void {
    if (this.#disposed) {
      throw new VitMsnError("DISPOSED", "This model was disposed; load it again with from_pretrained.");
    }
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#running.engine.dispose();
  }

  async #open_again(): Promise<void> {
    if (this.#load_again === undefined) {
      throw new VitMsnError(
        "ENGINE_DEAD",
        "The GPU device of this model was lost, and its weights with it. They can't be restored automatically, because the " +
          "caller passed the device or the files' bytes, or trained the model: load the model again.",
      );
    }
    const running = await this.#load_again();
    if (this.#disposed) await running.engine.dispose();
    this.check_alive();
    await this.#running.engine.dispose();
    this.#running = running;
  }
}
