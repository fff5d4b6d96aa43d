import type { RandomAccessFile } from "../../ts/loading/types.ts";

/** A file of `size` bytes in memory of which only these parts, by their places, aren't zero. */
export function sparse_file(
  name: string,
  size: number,
  ...parts: readonly (readonly [number, Uint8Array])[]
): RandomAccessFile {
  return {
    name,
    size,
    async read(offset, length) {
      const bytes = new Uint8Array(length);
      for (const [place, part] of parts) {
        const from = Math.max(offset, place);
        const to = Math.min(offset + length, place + part.byteLength);
        if (from < to) bytes.set(part.subarray(from - place, to - place), from - offset);
      }
      return bytes;
    },
    async close() {},
  };
}
