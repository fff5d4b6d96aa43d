import { failure_hint } from "#environment";
import { throw_if_aborted, VitMsnError } from "../errors.ts";
import { data_url_bytes } from "../network/data_url.ts";
import { failure_reason, fetch_url, type HeaderRecord } from "../network/fetch_url.ts";
import { show_url } from "../network/show_url.ts";
import { status_error } from "../network/status_error.ts";
import { check_byte_count, invalid_image } from "./limits.ts";

/** The bytes behind an http(s):, blob: or data: URL, at most MAX_BYTES. */
export async function fetch_image(
  url: string,
  signal?: AbortSignal,
  headers?: HeaderRecord,
): Promise<Uint8Array> {
  const name = name_of(url);
  throw_if_aborted(signal, `Reading ${name}`);
  if (/^data:/i.test(url)) return decode_data_url(url);
  try {
    const response = await fetch_url(url, { signal, headers });
    if (!response.ok) {
      await response.body?.cancel();
      throw status_error(name, response);
    }
    return await read_body(response, name);
  } catch (cause) {
    throw_if_aborted(signal, `Reading ${name}`);
    if (cause instanceof VitMsnError) throw cause;
    throw new VitMsnError(
      "NETWORK",
      `${name} can't be fetched: ${failure_reason(cause)}. Check the address.${failure_hint(url, cause)}`,
      {
        cause,
        details: { file: name },
      },
    );
  }
}

/** The longest path or URL that is shown whole. */
const MAX_NAME = 500;

/** A path or URL for messages: without secrets, and shortened, since any text may be passed as one. */
export function name_of(address: string): string {
  const name = show_url(address);
  return name.length <= MAX_NAME ? name : `${name.slice(0, 24)}… (${name.length} characters)`;
}

/**
 * How base64 of an image file begins: PNG, JPEG, WebP, GIF, AVIF, TIFF, BMP, PNM. Nothing else counts as base64, so that
 * a path stays a path.
 */
const BASE64 =
  /^(iVBORw0KG|\/9j\/|UklGR|R0lGOD[dl]h|AAAA..Z0eXB|SUkq|SUkr|TU0A|Qk|UD[E-Z])[A-Za-z0-9+/\s=]*$/;

/** Whether a text is the base64 of an image file, which transformers' load_image accepts as well. */
export function is_base64(text: string): boolean {
  return text.length >= 40 && BASE64.test(text);
}

async function read_body(response: Response, name: string): Promise<Uint8Array> {
  const chunks: BlobPart[] = [];
  const reader = response.body?.getReader();
  try {
    check_byte_count(Number(response.headers.get("content-length") ?? 0), name);
    let size = 0;
    for (let next = await reader?.read(); next?.value !== undefined; next = await reader?.read()) {
      chunks.push(next.value as BlobPart);
      size += next.value.length;
      check_byte_count(size, name);
    }
  } finally {
    await reader?.cancel();
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

function decode_data_url(url: string): Uint8Array {
  try {
    return data_url_bytes(url);
  } catch (cause) {
    const name = show_url(url);
    throw invalid_image(`${name} isn't valid: ${failure_reason(cause)}.`, name, {}, cause);
  }
}
