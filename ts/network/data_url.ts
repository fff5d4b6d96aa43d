/**
 * The bytes of a data: URL. It is decoded here, since a page's content security policy may forbid fetching it.
 * @throws Error if it isn't well formed.
 */
export function data_url_bytes(url: string): Uint8Array<ArrayBuffer> {
  const comma = url.indexOf(",");
  if (comma < 0) throw new TypeError("it has no comma before its data");
  const text = decodeURIComponent(url.slice(comma + 1));
  if (!/;\s*base64\s*$/i.test(url.slice(0, comma))) return new TextEncoder().encode(text);
  return Uint8Array.from(atob(text.replace(/\s/g, "")), (character) => character.charCodeAt(0));
}
