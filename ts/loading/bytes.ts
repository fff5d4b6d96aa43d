import { VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { bytes_of } from "../options.ts";
import type { RandomAccessFile } from "./types.ts";

/** Throws INVALID_CHECKPOINT unless [offset, offset+length) lies inside a file of `size` bytes. */
export function check_range(name: string, size: number, offset: number, length: number): void {
  const sound = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
  if (!sound || offset + length > size) {
    throw new VitMsnError(
      "INVALID_CHECKPOINT",
      `${name} ends early: ${length} bytes are needed from byte ${offset}, but the file has ${size} bytes. ` +
        "It was probably cut off while it was copied or downloaded; get it again.",
      { details: { file: name, offset, length, size } },
    );
  }
}

/** A file over bytes in memory; reads are views, not copies. */
export function memory_file(name: string, bytes: Uint8Array): RandomAccessFile {
  return {
    name,
    size: bytes.byteLength,
    async read(offset, length) {
      bytes_of(bytes, name);
      check_range(name, bytes.byteLength, offset, length);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  };
}

/** A file over a Blob (a picked File, a cached download), which the platform may store on disk. */
export function blob_file(name: string, blob: Blob): RandomAccessFile {
  return {
    name,
    size: blob.size,
    async read(offset, length) {
      check_range(name, blob.size, offset, length);
      const bytes = await blob_bytes(name, blob.slice(offset, offset + length));
      check_range(name, offset + bytes.byteLength, offset, length);
      return bytes;
    },
    async close() {},
  };
}

async function blob_bytes(name: string, blob: Blob): Promise<Uint8Array> {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (cause) {
    throw new VitMsnError(
      "IO",
      `${name} can't be read any more: it was changed, moved or deleted. Pick or download it again.`,
      {
        cause,
        details: { file: name },
      },
    );
  }
}

/** Decodes UTF-8 strictly; undefined if the bytes aren't UTF-8. */
export function decode_utf8(bytes: Uint8Array): string | undefined {
  try {
    // Node and browsers refuse to decode from shared memory, so views of it are copied first.
    const own = !is_a(bytes.buffer, "ArrayBuffer");
    return new TextDecoder("utf-8", { fatal: true }).decode(
      own ? bytes.slice() : (bytes as Uint8Array<ArrayBuffer>),
    );
  } catch {
    return undefined;
  }
}

/** A DataView over exactly these bytes. */
export function view_of(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

const LOOKALIKE_BYTES = 256;

/** Whether these are the first bytes of an HTML or XML page. */
export function looks_like_page(head: Uint8Array): boolean {
  const text = String.fromCharCode(...head.subarray(0, LOOKALIKE_BYTES));
  return /^(?:\u00ef\u00bb\u00bf)?\s*<(?:!doctype|!--|html|head|body|\?xml|error)/i.test(text);
}

/** Refuses what is often found in place of weights: a web page, or the pointer file that Git leaves without Git LFS. */
export async function refuse_lookalikes(file: RandomAccessFile): Promise<void> {
  const head = await file.read(0, Math.min(LOOKALIKE_BYTES, file.size));
  if (looks_like_page(head)) {
    throw new VitMsnError(
      "INVALID_CHECKPOINT",
      `${file.name} is a web page, not weights: it was saved from a page about the file. Download the file itself.`,
      { details: { file: file.name } },
    );
  }
  if (String.fromCharCode(...head).startsWith("version https://git-lfs")) {
    throw new VitMsnError(
      "INVALID_CHECKPOINT",
      `${file.name} is a Git LFS pointer, not weights: the repository was cloned without Git LFS. Run "git lfs pull" in it.`,
      { details: { file: file.name } },
    );
  }
}
