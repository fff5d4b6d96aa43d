/** The scripts of dist/ that run in Workers: a thread of the CPU engine, and a whole engine. */
export type WorkerProgram = "thread" | "engine_worker";

/** The end of a Worker that nobody asked for. */
export interface Lost {
  status: "lost";
  reason: string;
}

/** A Worker, seen from the one that started it. */
export interface StartedWorker<Request> {
  post(request: Request, transfer?: ArrayBuffer[]): void;
  /** Keeps the process there as long as the worker is; so it starts. */
  ref(): void;
  /** Lets the process end although the worker is there. */
  unref(): void;
  /** Ends the worker, wherever it is. */
  terminate(): Promise<void>;
}
