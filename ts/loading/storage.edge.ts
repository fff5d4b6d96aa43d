import { VitMsnError } from "../errors.ts";
import { find_place as find_web_place } from "./storage.web.ts";
import type { Place } from "./storage_types.ts";
import { memory_store, type Store } from "./store.ts";

export { default_token, open_local_file } from "./storage.web.ts";

/** fetch shows redirects and sends any header. */
export const fetch_is_unrestricted = true;

/** The URL that an address means; undefined where it may be a hub repo id. */
export async function find_place(source: string | URL): Promise<Place | undefined> {
  const address = String(source);
  if (!/^([./]|file:)/i.test(address)) return find_web_place(source);
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${address.slice(0, 200)} can't be opened here: an edge worker has neither folders nor an address of its own. Give an http(s) ` +
      "URL, a hub repository, or the files themselves.",
  );
}

/** Downloads are used and forgotten: the platform's fetch has a cache of its own. */
export function download_store(url: URL, _cache_dir: string | undefined): Store {
  return memory_store(url.href);
}
