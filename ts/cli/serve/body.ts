import { constants } from "node:buffer";
import { promisify } from "node:util";
import { brotliDecompress, gunzip, inflate, inflateRaw } from "node:zlib";
import type { Exchange } from "./exchange.ts";
import { HttpError, invalid, too_large } from "./http_error.ts";

type Decompress = (bytes: Buffer, options: { maxOutputLength: number }) => Promise<Buffer>;

const gunzipped: Decompress = promisify(gunzip);
const inflated: Decompress = promisify(inflate);
const inflated_raw: Decompress = promisify(inflateRaw);

const DEFLATE_METHOD = 8;

/** By their names in Content-Encoding. */
const DECOMPRESSORS: Readonly<Record<string, Decompress>> = {
  gzip: gunzipped,
  "x-gzip": gunzipped,
  // The standard requires zlib's format, but some clients send raw deflate data.
  deflate: (bytes, options) =>
    ((bytes[0] ?? 0) & 0x0f) === DEFLATE_METHOD ? inflated(bytes, options) : inflated_raw(bytes, options),
  br: promisify(brotliDecompress),
};

/** A request's decompressed body; `max_bytes` limits its size before and after. */
export async function decoded_body(exchange: Exchange, max_bytes: number): Promise<Buffer> {
  const encoding = (exchange.request.headers["content-encoding"] ?? "").trim().toLowerCase();
  const is_plain = encoding === "" || encoding === "identity";
  const decompress = Object.hasOwn(DECOMPRESSORS, encoding) ? DECOMPRESSORS[encoding] : undefined;
  if (!is_plain && decompress === undefined)
    throw new HttpError(
      415,
      "UNSUPPORTED_MEDIA_TYPE",
      "The Content-Encoding must be gzip, deflate or br, or absent.",
      { "accept-encoding": "gzip, deflate, br" },
    );
  const bytes = await exchange.read_body(max_bytes, () => too_large(max_bytes));
  if (decompress === undefined || bytes.length === 0) return bytes;
  try {
    return await decompress(bytes, { maxOutputLength: Math.min(max_bytes, constants.MAX_LENGTH) });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw too_large(max_bytes);
    throw invalid(`The body isn't valid ${encoding} data, as its Content-Encoding claims.`);
  }
}

/** Decodes base64 of either alphabet, with or without padding and line breaks; undefined for other text. */
export function from_base64(text: string): Buffer | undefined {
  const packed = text.replace(/\s+/g, "");
  return /^[\w+/-]+={0,2}$/.test(packed) ? Buffer.from(packed, "base64") : undefined;
}
