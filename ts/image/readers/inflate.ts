/**
 * Unpacks deflated data (a zlib stream without its two bytes of header), part by part. Whoever has enough of it stops, so that
 * a small file can't unpack to a large one.
 *
 * @returns whether the stream came to its own end; false where its data break off or are damaged.
 */
export async function* inflate(parts: readonly Uint8Array[]): AsyncGenerator<Uint8Array, boolean> {
  const reader = new Blob(parts as readonly BlobPart[] as BlobPart[])
    .stream()
    .pipeThrough(new DecompressionStream("deflate-raw"))
    .getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return true;
      yield value;
    }
  } catch (error) {
    // What comes behind the stream's end is an error, too, as is a broken one; the caller knows how much it wants.
    if (!(error instanceof Error)) throw error;
    return false;
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** All of a short zlib stream; undefined where it is damaged or unpacks to more than `max_bytes`. */
export async function inflate_text(bytes: Uint8Array, max_bytes: number): Promise<Uint8Array | undefined> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of inflate([bytes.subarray(2, -4)])) {
    parts.push(part);
    size += part.length;
    if (size > max_bytes) return undefined;
  }
  return size === 0 ? undefined : new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
}
