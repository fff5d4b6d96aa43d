import type { RawImage } from "../../index.ts";
import type { Row } from "../batch/rows.ts";
import type { ImageFile } from "./image_file.ts";
import type { EngineState, LastingTask } from "./lasting_task.ts";

/** What a route computes. */
export interface ServedTask {
  readonly state: EngineState;
  /** The number of batches that are computed at a time. */
  readonly engines: number;
  /** Decodes an image and makes it small. */
  prepare(file: ImageFile, max_pixels: number): Promise<RawImage>;
  /** One row for each prepared image. */
  compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]>;
}

/** The same task on several engines. It works as long as one of them does. */
export class EnginePool implements ServedTask {
  readonly #engines: readonly LastingTask[];
  readonly #busy = new Set<LastingTask>();
  readonly prepare: ServedTask["prepare"];

  constructor(engines: readonly LastingTask[], prepare: ServedTask["prepare"]) {
    this.#engines = engines;
    this.prepare = prepare;
  }

  get state(): EngineState {
    const states = this.#engines.map(({ state }) => state);
    return (["ok", "loading", "dead"] as const).find((state) => states.includes(state)) ?? "dead";
  }

  get engines(): number {
    return Math.max(1, this.#engines.filter(({ state }) => state === "ok").length);
  }

  async compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]> {
    const idle = this.#engines.filter((engine) => !this.#busy.has(engine));
    const engine = idle.find(({ state }) => state === "ok") ?? idle[0] ?? this.#engines[0];
    if (engine === undefined) throw new Error("A task needs an engine.");
    this.#busy.add(engine);
    try {
      return await engine.compute(images, signal);
    } finally {
      this.#busy.delete(engine);
    }
  }
}
