/** The unexpected end of a Worker. */
export interface Lost {
  status: "lost";
  reason: string;
}

/** A Worker, as seen by the code that started it. */
export interface StartedWorker<Request> {
  post(request: Request, transfer?: (ArrayBuffer | MessagePort)[]): void;
  /** Keeps the process alive as long as the worker runs; the initial state. */
  ref(): void;
  /** Lets the process end while the worker runs. */
  unref(): void;
  /** Ends the worker, whatever it is doing. */
  terminate(): Promise<void>;
}
