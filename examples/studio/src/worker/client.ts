import { type PlainError, type Reply, type Request, StudioError } from "./calls.ts";
import type { Service } from "./service.ts";

export interface CallOptions {
  signal?: AbortSignal | undefined;
  on_progress?: ((info: never) => void) | undefined;
}

type Methods = {
  [K in keyof Service]: Service[K] extends (...args: never) => unknown ? K : never;
}[keyof Service];
type Args<K extends Methods> = Parameters<Service[K]> extends [unknown, ...infer Rest] ? Rest : [];
type Result<K extends Methods> = Awaited<ReturnType<Service[K]>>;

interface Waiting {
  resolve: (value: never) => void;
  reject: (error: Error) => void;
  on_progress: ((info: never) => void) | undefined;
}

/** The page's side of the Worker that has the models. */
export class Client {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #next_id = 0;

  constructor(url: URL) {
    this.#worker = new Worker(url, { type: "module", name: "studio" });
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#hear(data);
    this.#worker.onerror = ({ message }) =>
      this.#fail_all({ name: "Error", message: message || "The studio's Worker can't be loaded." });
  }

  /** Calls a method of the service; `signal` ends it with ABORTED. */
  call<K extends Methods>(method: K, args: Args<K>, options: CallOptions = {}): Promise<Result<K>> {
    const id = this.#next_id++;
    const { signal, on_progress } = options;
    return new Promise<Result<K>>((resolve, reject) => {
      if (signal?.aborted) return reject(new StudioError({ name: "", message: "Stopped.", code: "ABORTED" }));
      const abort = () => this.#post({ id, abort: true });
      signal?.addEventListener("abort", abort);
      const settle =
        <T>(done: (value: T) => void) =>
        (value: T) => {
          signal?.removeEventListener("abort", abort);
          done(value);
        };
      this.#waiting.set(id, { resolve: settle(resolve), reject: settle(reject), on_progress });
      this.#post({ id, method, args });
    });
  }

  #post(request: Request): void {
    this.#worker.postMessage(request);
  }

  #hear(reply: Reply): void {
    const waiting = this.#waiting.get(reply.id);
    if (waiting === undefined) return;
    if ("progress" in reply) {
      waiting.on_progress?.(reply.progress as never);
      return;
    }
    this.#waiting.delete(reply.id);
    if ("error" in reply) waiting.reject(new StudioError(reply.error));
    else waiting.resolve(reply.result as never);
  }

  #fail_all(error: PlainError): void {
    for (const { reject } of this.#waiting.values()) reject(new StudioError(error));
    this.#waiting.clear();
  }
}
