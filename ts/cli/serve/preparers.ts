import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type Channels, type ErrorCode, RawImage, VitMsnError } from "../../index.ts";
import type { ImageFile } from "./image_file.ts";

export interface PrepareRequest {
  file: ImageFile;
  max_pixels: number;
  /** Which of the Worker's processors to use. */
  processor: number;
}

export type PrepareReply =
  | { data: Uint8Array | Uint8ClampedArray; width: number; height: number; channels: Channels }
  | { code: ErrorCode; message: string }
  | { fault: string };

/** What a pool needs of a Worker. */
export type PrepareWorker = Pick<Worker, "on" | "postMessage" | "terminate" | "unref">;

/** Two at least, so that one is left for small images. */
export function default_preparers(): number {
  return Math.max(2, Math.min(4, availableParallelism()));
}

/** Starts a Worker with processors of these settings. */
export function start_prepare_worker(settings: readonly Record<string, unknown>[]): PrepareWorker {
  return new Worker(new URL("./prepare_worker.js", import.meta.url), {
    name: "vit-msn-prepare",
    workerData: settings,
  });
}

/** Workers that decode images and resize them, so that the thread of the server only speaks HTTP. */
export class Preparers {
  readonly #start: () => PrepareWorker;
  readonly #members: Member[];

  /** @param start starts a Worker: now, and whenever one has ended. */
  constructor(count: number, start: () => PrepareWorker) {
    this.#start = start;
    this.#members = Array.from({ length: count }, () => new Member(start()));
  }

  /** As many are prepared at a time as there are Workers; the caller bounds how many wait. */
  async prepare(request: PrepareRequest): Promise<RawImage> {
    const member = this.#least_busy();
    const reply = await member.ask(request);
    if ("data" in reply) return new RawImage(reply.data, reply.width, reply.height, reply.channels);
    if ("code" in reply) throw new VitMsnError(reply.code, reply.message);
    throw new Error(reply.fault);
  }

  async dispose(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.end()));
  }

  #least_busy(): Member {
    this.#members.forEach((member, i) => {
      if (member.is_lost) this.#members[i] = new Member(this.#start());
    });
    return this.#members.reduce((best, member) => (member.waiting < best.waiting ? member : best));
  }
}

/** One Worker, which answers in order. */
class Member {
  readonly #worker: PrepareWorker;
  #waiting: { resolve(reply: PrepareReply): void; reject(error: Error): void }[] = [];
  is_lost = false;

  constructor(worker: PrepareWorker) {
    this.#worker = worker;
    worker.unref();
    worker.on("message", (reply: PrepareReply) => this.#waiting.shift()?.resolve(reply));
    worker.on("error", (error) => this.#lose(error));
    worker.on("exit", () => this.#lose(new Error("it has ended")));
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  ask(request: PrepareRequest): Promise<PrepareReply> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      // A copy: the request's buffer may be part of a larger one.
      const bytes = new Uint8Array(request.file.bytes);
      const copied = { ...request, file: { ...request.file, bytes } };
      this.#worker.postMessage(copied, [bytes.buffer]);
    });
  }

  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  #lose(error: Error): void {
    this.is_lost = true;
    for (const { reject } of this.#waiting)
      reject(new Error(`The thread that decodes images was lost: ${error.message}.`));
    this.#waiting = [];
  }
}
