import { is_error } from "../../is_a.ts";
/** Deflated data (RFC 1951) as they stand in a zlib stream (RFC 1950): without its two bytes of header and four of checksum. */
export function zlib_data(stream: Uint8Array): Uint8Array {
  return stream.subarray(2, -4);
}

/** Bytes that are given to the decoder at a time. */
const PIECE = 2 ** 14;

/**
 * Inflates deflated data part by part. Callers stop when they have as much as they expect, so that a small file can't inflate
 * to a large one.
 *
 * @returns whether the data end with the stream; false where they break off or are damaged.
 */
export async function* inflate(data: Uint8Array): AsyncGenerator<Uint8Array, boolean> {
  const whole = new Source(data, data.length);
  let inflated = 0;
  for await (const part of whole.inflate()) {
    inflated += part.length;
    yield part;
  }
  if (whole.is_complete) return true;
  // The piece with the error, such as bytes after the stream's end, may hold the end of the image too, and WebKit drops what
  // it has inflated of such a piece: it is given byte by byte.
  for await (const part of new Source(data, whole.end - PIECE).inflate()) {
    const known = Math.min(inflated, part.length);
    inflated -= known;
    if (known < part.length) yield part.subarray(known);
  }
  return false;
}

/** Deflated data, in pieces up to `single_from` and from there byte by byte. */
class Source {
  readonly #data: Uint8Array;
  readonly #single_from: number;
  /** The end of the last piece that was given to the decoder. */
  end = 0;
  is_complete = false;

  constructor(data: Uint8Array, single_from: number) {
    this.#data = data;
    this.#single_from = single_from;
  }

  async *inflate(): AsyncGenerator<Uint8Array> {
    const pull = (controller: ReadableStreamDefaultController<BufferSource>) => {
      if (this.end >= this.#data.length) return controller.close();
      const start = this.end;
      this.end = Math.min(this.#data.length, start < this.#single_from ? start + PIECE : start + 1);
      controller.enqueue(this.#data.slice(start, this.end));
    };
    const reader = new ReadableStream<BufferSource>({ pull }, { highWaterMark: 0 })
      .pipeThrough(new DecompressionStream("deflate-raw"))
      .getReader();
    try {
      for (;;) {
        const { value, done } = await reader.read();
        this.is_complete = done;
        if (done) return;
        yield value;
      }
    } catch (error) {
      // Bytes after the stream's end are an error too; the caller knows how much it expects.
      if (!is_error(error)) throw error;
    } finally {
      await reader.cancel().catch(() => undefined);
    }
  }
}

/** All of a short zlib stream; undefined where it is damaged or inflates to more than `max_bytes`. */
export async function inflate_text(bytes: Uint8Array, max_bytes: number): Promise<Uint8Array | undefined> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of inflate(zlib_data(bytes))) {
    parts.push(part);
    size += part.length;
    if (size > max_bytes) return undefined;
  }
  return size === 0 ? undefined : new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
}

/** The checksum at the end of a zlib stream: without it a file in which some bytes are wrong would be another image. */
export class Adler32 {
  #sum = 1;
  #sum_of_sums = 0;

  add(bytes: Uint8Array): void {
    // As many bytes as can be added up before a sum is too large for the fast integers of engines.
    for (let at = 0; at < bytes.length; at += 2048) {
      for (const byte of bytes.subarray(at, at + 2048)) {
        this.#sum += byte;
        this.#sum_of_sums += this.#sum;
      }
      this.#sum %= 65521;
      this.#sum_of_sums %= 65521;
    }
  }

  /** Whether it is in a stream: it should be near the end, but where the deflated data end isn't known. */
  is_in(stream: Uint8Array): boolean {
    const wanted = this.#sum_of_sums * 65536 + this.#sum;
    let found = 0;
    for (const byte of stream) {
      found = ((found << 8) | byte) >>> 0;
      if (found === wanted) return true;
    }
    return false;
  }
}
