import { setTimeout } from "node:timers/promises";
import { type RawImage, VitMsnError } from "../../index.ts";
import type { Task } from "../batch/job.ts";
import type { Row } from "../batch/rows.ts";

type LoadedTask = Pick<Task, "compute" | "is_alive" | "dispose">;
export type EngineState = "ok" | "loading" | "dead";

export interface LastingTaskOptions {
  /** Loads it again. */
  load(): Promise<LoadedTask>;
  log(line: string): void;
  /** Resolves after a time, or once the signal fires. */
  wait?(ms: number, signal: AbortSignal): Promise<void>;
}

const MIN_DELAY_MS = 1000;
const MAX_DELAY_MS = 60_000;

/**
 * A task whose model is loaded again when its engine dies. If it dies again before it has computed anything, or can't be
 * loaded, each further attempt comes after twice the time.
 */
export class LastingTask {
  readonly #options: LastingTaskOptions;
  readonly #disposed = new AbortController();
  #task: LoadedTask;
  /** Pending while the model is loaded again, or is about to be. */
  #loading: Promise<void> | undefined;
  /** Whether it is about to be. */
  #is_dead = false;
  /** The time before the next attempt. */
  #delay_ms = 0;

  constructor(task: LoadedTask, options: LastingTaskOptions) {
    this.#task = task;
    this.#options = options;
  }

  /** Its current state; reading it starts a reload if one is due. */
  get state(): EngineState {
    this.#revive();
    return this.#is_dead ? "dead" : this.#loading !== undefined ? "loading" : "ok";
  }

  async compute(images: RawImage[], signal: AbortSignal): Promise<Omit<Row, "image">[]> {
    this.#revive();
    if (this.#is_dead) throw new VitMsnError("ENGINE_DEAD", "The engine died; it is started again soon.");
    await this.#loading;
    const rows = await this.#task.compute(images, signal);
    this.#delay_ms = 0;
    return rows;
  }

  async dispose(): Promise<void> {
    this.#disposed.abort();
    await this.#loading;
    await this.#task.dispose();
  }

  #revive(): void {
    if (this.#loading !== undefined || this.#task.is_alive()) return;
    this.#is_dead = this.#delay_ms > 0;
    this.#options.log(`the engine died; loading the model again${later(this.#delay_ms)}.`);
    this.#loading = this.#load_again().finally(() => {
      this.#loading = undefined;
    });
  }

  async #load_again(): Promise<void> {
    const { load, log, wait = sleep } = this.#options;
    for (;;) {
      if (this.#is_dead) await wait(this.#delay_ms, this.#disposed.signal);
      if (this.#disposed.signal.aborted) return;
      this.#is_dead = false;
      this.#delay_ms = Math.min(MAX_DELAY_MS, Math.max(MIN_DELAY_MS, 2 * this.#delay_ms));
      try {
        await this.#task.dispose();
        this.#task = await load();
        return;
      } catch (error) {
        this.#is_dead = true;
        log(
          `the model can't be loaded again: ${(error as Error).message} Trying again${later(this.#delay_ms)}.`,
        );
      }
    }
  }
}

function later(delay_ms: number): string {
  return delay_ms === 0 ? "" : ` in ${delay_ms / 1000} s`;
}

async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  await setTimeout(ms, undefined, { signal, ref: false }).catch(() => {});
}
