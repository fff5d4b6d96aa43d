import { VitMsnError } from "../errors.ts";
import { show_url } from "./show_url.ts";

/** A URL without its user and password, which fetch refuses, and the Authorization header that replaces them. */
export interface SplitUrl {
  url: URL;
  authorization: string | undefined;
}

/** @throws VitMsnError INVALID_ARGUMENT for text that isn't a URL. */
export function split_credentials(address: string | URL): SplitUrl {
  if (!URL.canParse(address)) {
    const shown = show_url(address);
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${shown} isn't a valid URL; in a password "/" is %2F and "#" is %23.`,
      { details: { url: shown } },
    );
  }
  const url = new URL(address);
  const authorization = basic_authorization(url);
  url.username = url.password = "";
  return { url, authorization };
}

/** The value of an Authorization header for a URL's user and password; undefined if it has none. */
export function basic_authorization({ username, password }: URL): string | undefined {
  if (username === "" && password === "") return undefined;
  const bytes = new TextEncoder().encode(`${decode(username)}:${decode(password)}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a literal percent sign
  }
}
