import type { Readable } from "node:stream";
import { RawImage, VitMsnError } from "../../index.ts";
import { aborted, file_error } from "./errors.ts";
import type { ListedImage, ReadingOptions } from "./listed_image.ts";

/** One image from standard input or a pipe, which is opened only when it is read: images may just be counted. */
export function from_stream(name: string, open: () => Readable): ListedImage {
  const read = async (options: ReadingOptions) => {
    const chunks: Uint8Array[] = [];
    for await (const chunk of interruptible(open(), name, options.signal)) chunks.push(chunk);
    return RawImage.read(Buffer.concat(chunks), options);
  };
  return { name, read };
}

/** A stream's bytes until the run is interrupted, even while the stream itself waits, such as for a pipe's writer. */
export async function* interruptible(
  stream: Readable,
  name: string,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const chunks: AsyncIterator<Uint8Array> = stream[Symbol.asyncIterator]();
  let interrupt = () => {};
  const interruption = new Promise<never>((_, reject) => {
    interrupt = () => reject(aborted(signal));
  });
  interruption.catch(() => {}); // the reader gets it from the race
  signal.addEventListener("abort", interrupt);
  if (signal.aborted) interrupt();
  try {
    for (;;) {
      const { done, value } = await Promise.race([chunks.next(), interruption]);
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw error instanceof VitMsnError ? error : file_error(error, name);
  } finally {
    signal.removeEventListener("abort", interrupt);
    stream.destroy();
  }
}
