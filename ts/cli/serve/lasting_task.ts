import { type RawImage, VitMsnError } from "../../index.ts";
import type { Task } from "../batch/job.ts";
import type { Row } from "../batch/rows.ts";
import type { Computation } from "../batch/run_batches.ts";

type LoadedTask = Pick<Task, "prepare" | "compute" | "is_alive" | "dispose">;

export interface ServedTask extends Computation {
  readonly state: "ok" | "loading" | "dead";
}

/**
 * A task whose model is loaded again if its engine dies. If it dies again before it has computed anything, it stays dead:
 * reloading forever would hide the cause.
 */
export class LastingTask implements ServedTask {
  readonly #load: () => Promise<LoadedTask>;
  readonly #log: (line: string) => void;
  #task: LoadedTask;
  /** Pending while the model is loaded again. */
  #loading: Promise<void> | undefined;
  #is_dead = false;
  #may_load = true;

  private constructor(task: LoadedTask, load: () => Promise<LoadedTask>, log: (line: string) => void) {
    this.#task = task;
    this.#load = load;
    this.#log = log;
  }

  static async load(load: () => Promise<LoadedTask>, log: (line: string) => void): Promise<LastingTask> {
    return new LastingTask(await load(), load, log);
  }

  /** Its current state; reading it starts a reload if one is due. */
  get state(): ServedTask["state"] {
    this.#revive();
    return this.#is_dead ? "dead" : this.#loading !== undefined ? "loading" : "ok";
  }

  prepare(image: RawImage, signal: AbortSignal): Promise<RawImage> {
    return this.#task.prepare(image, signal);
  }

  async compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]> {
    this.#revive();
    await this.#loading;
    if (this.#is_dead) throw new VitMsnError("ENGINE_DEAD", "The engine died; restart the server.");
    const rows = await this.#task.compute(images, signal);
    this.#may_load = true;
    return rows;
  }

  async dispose(): Promise<void> {
    await this.#loading;
    await this.#task.dispose();
  }

  #revive(): void {
    if (this.#is_dead || this.#loading !== undefined || this.#task.is_alive()) return;
    if (!this.#may_load) {
      this.#is_dead = true;
      this.#log("the engine died again; restart the server.");
      return;
    }
    this.#may_load = false;
    this.#log("the engine died; loading the model again.");
    this.#loading = this.#load_again().finally(() => {
      this.#loading = undefined;
    });
  }

  async #load_again(): Promise<void> {
    try {
      await this.#task.dispose();
      this.#task = await this.#load();
    } catch (error) {
      this.#is_dead = true;
      this.#log(`the model can't be loaded again: ${(error as Error).message}`);
    }
  }
}
