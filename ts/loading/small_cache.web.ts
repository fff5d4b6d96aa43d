import { env } from "../env.ts";

/** The text cached next to the downloads under a name, "folder/file"; undefined if there is none. */
export async function read_entry(name: string, _cache_dir: string | undefined): Promise<string | undefined> {
  try {
    return await (await (await cache()).match(url_of(name)))?.text();
  } catch {
    return undefined; // this page may not use storage
  }
}

/** Caches a text under a name. @throws if the browser refuses. */
export async function write_entry(name: string, text: string, _cache_dir: string | undefined): Promise<void> {
  await (await cache()).put(url_of(name), new Response(text));
}

const cache = () => caches.open(env.cache_key);

/** The Cache API takes URLs; this host doesn't exist. */
const url_of = (name: string) => `https://vit-msn.invalid/${name}`;
