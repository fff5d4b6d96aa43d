import { once } from "node:events";
import type { VitMsnError } from "../../index.ts";
import { notify } from "../terminal.ts";
import type { Row } from "./rows.ts";
import type { Outcome, Sink } from "./run_batches.ts";

/** Prints rows as they are computed. Images that fail are reported on standard error. */
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
    notify(`${message} [${code}]`);
  }
}

/** Waits until a slow reader catches up, so that output doesn't accumulate in memory. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}
