import { gunzip } from "../../../ts/cli/batch/gunzip.ts";
import { DamagedArchive, tar_members } from "../../../ts/files/tar_reader.ts";

export const dictionary = [
  "ustar\x0000",
  "ustar  \0",
  "././@LongLink",
  "30 path=a.png\n",
  "GNU.sparse.major=1\n",
  "GNU.sparse.map=0,10,20,5\n",
  "22 GNU.sparse.size=9\n",
  "77777777777",
  Uint8Array.of(0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
  new Uint8Array(512),
];

/** The offset of a header's checksum. */
const [SUM, SUM_END, BLOCK] = [148, 156, 512];

/** In pieces, as a stream brings them. */
async function* pieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 1000) yield bytes.subarray(at, at + 1000);
}

export async function fuzz(bytes: Uint8Array): Promise<void> {
  const is_gzip = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const source = is_gzip ? gunzip(pieces(bytes)) : pieces(with_sums(bytes));
  try {
    for await (const member of tar_members(source)) {
      if (member.kind === "file" && member.size < 1 << 20) {
        const { length } = await member.read();
        if (length > member.size) throw new Error(`${length} of ${member.size} bytes were read.`);
      }
    }
  } catch (error) {
    const is_refused =
      error instanceof DamagedArchive || (error as NodeJS.ErrnoException).code?.startsWith("Z_");
    if (!is_refused) throw error;
  }
}

/** Corrects the sum in every block that looks like a header: mutations would get no further than the check of it. */
export function with_sums(bytes: Uint8Array): Uint8Array {
  const corrected = bytes.slice();
  for (let at = 0; at + BLOCK <= corrected.length; at += BLOCK) {
    const block = corrected.subarray(at, at + BLOCK);
    if (!/^[\0-7 ]+$/.test(String.fromCharCode(...block.subarray(SUM, SUM_END)))) continue;
    block.fill(0x20, SUM, SUM_END);
    const sum = block.reduce((total, byte) => total + byte, 0);
    block.set(Buffer.from(`${sum.toString(8).padStart(6, "0")}\0 `), SUM);
  }
  return corrected;
}
