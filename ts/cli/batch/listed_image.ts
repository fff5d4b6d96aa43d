import type { RawImage, VitMsnError } from "../../index.ts";

/** A picture that waits to be read. */
export interface Picture {
  /** Its path or URL; a shard's member has the shard's before its own. */
  readonly name: string;
  read(signal: AbortSignal): Promise<RawImage>;
}

/** In the place of a source that can't be read. */
export function failing(name: string, error: VitMsnError): Picture {
  return { name, read: () => Promise.reject(error) };
}
