import type { Reached, Retry } from "./journal.ts";
import type { KeptRow } from "./rows.ts";
import { type Selected, SourcesChanged } from "./selection.ts";

/** What an earlier run made of the pictures, in their order. */
interface Earlier {
  earlier_rows(): AsyncGenerator<KeptRow>;
  earlier_failures(): AsyncGenerator<string>;
}

/**
 * The pictures, with the rows of those that an earlier run computed: the others are tried again.
 * @throws SourcesChanged where a picture is one that the earlier run didn't have in this place.
 */
export async function* with_earlier(
  selected: AsyncIterable<Selected>,
  earlier: Earlier,
): AsyncGenerator<Selected> {
  const [rows, failures] = [earlier.earlier_rows(), earlier.earlier_failures()];
  try {
    let [row, failure] = [await rows.next(), await failures.next()];
    for await (const picture of selected) {
      if (!row.done && row.value.image === picture.name) {
        yield { ...picture, kept: row.value.bytes };
        row = await rows.next();
      } else if (!failure.done && failure.value === picture.name) {
        yield picture;
        failure = await failures.next();
      } else throw new SourcesChanged(picture.reached.position);
    }
  } finally {
    await rows.return(undefined);
    await failures.return(undefined);
  }
}

/** @throws SourcesChanged where the sources end elsewhere than in the run whose failures are tried again. */
export function check_end(reached: Reached, retry: Retry | undefined): void {
  if (retry === undefined || reached.names_sha256 === retry.names_sha256) return;
  throw new SourcesChanged(retry.position, reached.position < retry.position ? reached.position : undefined);
}
