import { strFromU8, unzipSync, zipSync } from "fflate";
import { VitMsnError } from "vit-msn";
import type { WrittenFiles } from "./memory_directory.ts";

/** The most bytes that a file of an archive may unpack to; a head with the features of 20,000 images has less. */
const MAX_UNPACKED = 256 << 20;

/** One file to download; weights don't get smaller by packing. */
export function pack(files: WrittenFiles): Blob {
  return new Blob([zipSync(Object.fromEntries(files), { level: 0 }) as Uint8Array<ArrayBuffer>], {
    type: "application/zip",
  });
}

/**
 * The files that make up a saved head, from an archive or as they are.
 * @throws VitMsnError INVALID_CHECKPOINT for a damaged or oversized archive.
 */
export async function unpack(given: readonly File[]): Promise<Map<string, Uint8Array | File>> {
  const files = new Map<string, Uint8Array | File>();
  for (const file of given) {
    if (!file.name.toLowerCase().endsWith(".zip")) files.set(file.name, file);
    else for (const [name, bytes] of await unzip(file)) files.set(name, bytes);
  }
  return files;
}

async function unzip(file: File): Promise<[string, Uint8Array][]> {
  const damaged = (why: string, cause?: unknown) =>
    new VitMsnError("INVALID_CHECKPOINT", `${file.name} can't be unpacked: ${why}.`, { cause });
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (strFromU8(bytes.subarray(0, 2), true) !== "PK") throw damaged("it isn't a zip archive");
  try {
    const entries = unzipSync(bytes, {
      filter({ name, originalSize }) {
        if (originalSize > MAX_UNPACKED) throw damaged(`${name} in it is larger than any head`);
        return true;
      },
    });
    return Object.entries(entries);
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    throw damaged("it is damaged", cause);
  }
}
