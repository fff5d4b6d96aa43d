import { createGunzip } from "node:zlib";

/**
 * Decompresses gzip data. Everything before a truncation or damage is yielded before the error is thrown, which a stream's
 * own pipe() doesn't guarantee.
 */
export async function* gunzip(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const stream = createGunzip();
  let failure: Error | undefined;
  let wake = () => {};
  stream.on("error", (error) => {
    failure = error;
    wake();
  });
  stream.on("readable", () => wake());
  /** The output until `work` has processed its input. */
  const output_of = async function* (work: (done: () => void) => void): AsyncGenerator<Uint8Array> {
    let is_done = false;
    work(() => {
      is_done = true;
      wake();
    });
    for (;;) {
      const woken = new Promise<void>((resolve) => {
        wake = resolve;
      });
      const piece: Uint8Array | null = stream.read();
      if (piece !== null) yield piece;
      else if (failure !== undefined || is_done) break;
      else await woken;
    }
    if (failure !== undefined) throw failure;
  };
  try {
    for await (const bytes of source) yield* output_of((done) => stream.write(bytes, done));
    // Where zeros or other bytes follow the compressed data, the stream has ended before its input.
    yield* output_of((done) => (stream.readableEnded ? done() : stream.on("end", done).end()));
  } finally {
    stream.destroy();
  }
}
