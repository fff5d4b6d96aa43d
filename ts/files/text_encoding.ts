import { concat_bytes } from "./concat_bytes.ts";

type Encoding = "utf-8" | "utf-16le" | "utf-16be";

/** A text's encoding, by its first bytes. */
function detect(bytes: Uint8Array): { encoding: Encoding; mark: number } {
  const [a, b, c, d] = bytes;
  if (a === 0xff && b === 0xfe) return { encoding: "utf-16le", mark: 2 };
  if (a === 0xfe && b === 0xff) return { encoding: "utf-16be", mark: 2 };
  if (a === 0xef && b === 0xbb && c === 0xbf) return { encoding: "utf-8", mark: 3 };
  // Without a mark: in UTF-16 every Latin letter has a zero byte.
  if (bytes.length >= 4 && a !== 0 && b === 0 && c !== 0 && d === 0) return { encoding: "utf-16le", mark: 0 };
  if (bytes.length >= 4 && a === 0 && b !== 0 && c === 0 && d !== 0) return { encoding: "utf-16be", mark: 0 };
  return { encoding: "utf-8", mark: 0 };
}

/** A text's bytes as UTF-8, without the byte order mark: UTF-8 is passed on, UTF-16 converted. */
export async function* as_utf8(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let decoder: TextDecoder | undefined;
  let start: Uint8Array | undefined = new Uint8Array();
  const encoder = new TextEncoder();
  const encode = (bytes?: Uint8Array) =>
    encoder.encode(decoder?.decode(bytes, { stream: bytes !== undefined }) ?? "");
  const begin = (bytes: Uint8Array) => {
    const { encoding, mark } = detect(bytes);
    if (encoding !== "utf-8") decoder = new TextDecoder(encoding);
    return bytes.subarray(mark);
  };
  for await (const bytes of input) {
    let piece = bytes;
    if (start !== undefined) {
      start = concat_bytes([start, bytes]);
      if (start.length < 4) continue;
      piece = begin(start);
      start = undefined;
    }
    yield decoder === undefined ? piece : encode(piece);
  }
  if (start !== undefined) {
    const piece = begin(start);
    yield decoder === undefined ? piece : encode(piece);
  }
  if (decoder !== undefined) yield encode();
}
