import { once } from "node:events";
import type { VitMsnError } from "../../index.ts";
import { say } from "../terminal.ts";
import type { Row } from "./rows.ts";
import type { Outcome, Sink } from "./run_batches.ts";

/** Prints rows as they come. A picture that fails is told on standard error. */
export class PrintSink implements Sink {
  readonly #format: (row: Row) => string;
  failures = 0;

  constructor(format: (row: Row) => string) {
    this.#format = format;
  }

  async write(outcomes: readonly Outcome[]): Promise<void> {
    for (const outcome of outcomes) {
      if ("row" in outcome) await print(this.#format(outcome.row));
      else if ("error" in outcome) this.#fail(outcome.error);
    }
  }

  #fail({ message, code }: VitMsnError): void {
    this.failures++;
    say(`${message} [${code}]`);
  }
}

/** Waits where the reader is slower than we are, so that nothing piles up. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}
