import { once } from "node:events";
import type { VitMsnError } from "../../index.ts";
import { notify } from "../terminal.ts";
import type { Row } from "./rows.ts";
import type { Outcome, Sink } from "./run_batches.ts";

/** Passes rows on as they are computed. Images that fail are reported on standard error. */
export class RowSink implements Sink {
  readonly #take: (row: Row) => void | Promise<void>;
  failures = 0;

  constructor(take: (row: Row) => void | Promise<void>) {
    this.#take = take;
  }

  async write(outcomes: readonly Outcome[]): Promise<void> {
    for (const outcome of outcomes) {
      if ("row" in outcome) await this.#take(outcome.row);
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
