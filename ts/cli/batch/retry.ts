import type { Reached, Retry } from "./journal.ts";
import type { StoredRow } from "./rows.ts";
import { type Selected, SourcesChanged } from "./selection.ts";

/** An earlier run's results, in the order of the images. */
interface Earlier {
  earlier_rows(): AsyncGenerator<StoredRow>;
  earlier_failures(): AsyncGenerator<string>;
}

/**
 * The images, with the stored rows of those that an earlier run computed; the others are retried.
 * @throws SourcesChanged if the earlier run had another image at a position.
 */
export async function* with_earlier(
  selected: AsyncIterable<Selected>,
  earlier: Earlier,
): AsyncGenerator<Selected> {
  const [rows, failures] = [earlier.earlier_rows(), earlier.earlier_failures()];
  try {
    let [row, failure] = [await rows.next(), await failures.next()];
    for await (const image of selected) {
      if (!row.done && row.value.image === image.name) {
        yield { ...image, stored: row.value.bytes };
        row = await rows.next();
      } else if (!failure.done && failure.value === image.name) {
        yield image;
        failure = await failures.next();
      } else throw new SourcesChanged(image.reached.position);
    }
  } finally {
    await rows.return(undefined);
    await failures.return(undefined);
  }
}

/** @throws SourcesChanged if the sources end at another position than in the run whose failures are retried. */
export function check_end(reached: Reached, retry: Retry | undefined): void {
  if (retry === undefined || reached.names_sha256 === retry.names_sha256) return;
  throw new SourcesChanged(retry.position, reached.position < retry.position ? reached.position : undefined);
}
