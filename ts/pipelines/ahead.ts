import type { ImageProcessorOutput } from "../image/image_processing_vit.ts";
import type { ImageInput } from "../image/raw_image.ts";

/** The largest batch next to which another one is prepared. */
const MAX_BYTES = 64 * 1024 * 1024;

/**
 * A list's batches, in order. The next one is decoded and resized while the consumer computes, so at most two are in memory,
 * and large ones one at a time. The consumer disposes of what it gets.
 */
export async function* read_ahead(
  images: readonly ImageInput[],
  batch_size: number,
  prepare: (batch: readonly ImageInput[]) => Promise<ImageProcessorOutput>,
): AsyncGenerator<ImageProcessorOutput> {
  let next: Promise<ImageProcessorOutput> | undefined;
  const batch = (from: number) => prepare(images.slice(from, from + batch_size));
  try {
    for (let from = 0; from < images.length; ) {
      const output = await (next ?? batch(from));
      from += batch_size;
      next = undefined;
      if (from < images.length && 4 * output.pixel_values.size <= MAX_BYTES) {
        next = batch(from);
        // Its error is thrown when its turn comes.
        next.catch(() => {});
      }
      yield output;
    }
  } finally {
    await next?.then(
      ({ pixel_values }) => pixel_values.dispose(),
      () => {},
    );
  }
}
