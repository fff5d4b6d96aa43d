import { env } from "../env.ts";
import { type ErrorCode, throw_if_aborted, VitMsnError } from "../errors.ts";
import { check_byte_count, invalid_image } from "./header.ts";

/** The bytes behind an http(s):, blob: or data: URL, at most MAX_BYTES. */
export async function fetch_picture(url: string, signal?: AbortSignal): Promise<Uint8Array> {
  throw_if_aborted(signal, `Reading ${short_name(url)}`);
  if (/^data:/i.test(url)) return decode_data_url(url);
  try {
    const response = await env.fetch(url, { signal });
    if (!response.ok) throw status_error(url, response);
    return await read_body(response, url);
  } catch (cause) {
    throw_if_aborted(signal, `Reading ${url}`);
    if (cause instanceof VitMsnError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VitMsnError(
      "NETWORK",
      `${url} can't be fetched: ${reason}. Check the address and the network.`,
      {
        cause,
        details: { file: url },
      },
    );
  }
}

/** A URL for messages: a data: URL without its data. */
export function short_name(url: string): string {
  return /^data:/i.test(url) ? `${url.slice(0, 24)}… (a data: URL)` : url;
}

const STATUS_CODES: Record<number, ErrorCode> = {
  401: "ACCESS_DENIED",
  403: "ACCESS_DENIED",
  404: "NOT_FOUND",
  410: "NOT_FOUND",
};

function status_error(url: string, response: Response): VitMsnError {
  const { status, statusText } = response;
  const answer = `${status} ${statusText}`.trim();
  return new VitMsnError(STATUS_CODES[status] ?? "NETWORK", `${url} answered ${answer}; check the address.`, {
    details: { file: url, status },
  });
}

async function read_body(response: Response, url: string): Promise<Uint8Array> {
  check_byte_count(Number(response.headers.get("content-length") ?? 0), url);
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = response.body?.getReader();
  for (let next = await reader?.read(); next?.value !== undefined; next = await reader?.read()) {
    chunks.push(next.value);
    size += next.value.length;
    try {
      check_byte_count(size, url);
    } catch (error) {
      await reader?.cancel();
      throw error;
    }
  }
  return join(chunks, size);
}

function join(chunks: Uint8Array[], size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.length;
  }
  return bytes;
}

/** By hand, since a page's content security policy may forbid to fetch data: URLs. */
function decode_data_url(url: string): Uint8Array {
  const comma = url.indexOf(",");
  const name = short_name(url);
  if (comma < 0) throw invalid_image(`${name} has no comma, so no data.`, name);
  try {
    const text = decodeURIComponent(url.slice(comma + 1));
    if (!/;\s*base64\s*$/i.test(url.slice(0, comma))) return new TextEncoder().encode(text);
    return Uint8Array.from(atob(text.replace(/\s/g, "")), (character) => character.charCodeAt(0));
  } catch (cause) {
    throw invalid_image(`${name} isn't valid base64.`, name, {}, cause);
  }
}
