const MAX_KINDS = 100;

/** Logs each kind of internal error once, on one line, however often clients trigger it. */
export class FaultLog {
  readonly #log: (line: string) => void;
  readonly #known = new Set<string>();

  constructor(log: (line: string) => void) {
    this.#log = log;
  }

  add(what: string, error: unknown): void {
    const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    const place = error instanceof Error ? (error.stack?.split("\n    at ", 2)[1] ?? "") : "";
    const line = `${what} failed: ${text} (${place.trim()})`.replace(/[\s\p{Cc}]+/gu, " ");
    if (this.#known.has(line) || this.#known.size >= MAX_KINDS) return;
    this.#known.add(line);
    this.#log(line);
  }
}
