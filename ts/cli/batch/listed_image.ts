import type { RawImage, ReadOptions, VitMsnError } from "../../index.ts";

/** An image of the sources that hasn't been read yet. */
export interface ListedImage {
  /** Its path or URL; for a member of a shard, the shard's path followed by the member's. */
  readonly name: string;
  /** Reads and decodes it. */
  read(options: ReadingOptions): Promise<RawImage>;
}

export type ReadingOptions = Pick<ReadOptions, "admit"> & { signal: AbortSignal };

/** Stands for a source that can't be read: reading it rejects with `error`. */
export function unreadable(name: string, error: VitMsnError): ListedImage {
  return { name, read: () => Promise.reject(error) };
}
