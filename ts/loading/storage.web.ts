import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { show_url } from "../network/show_url.ts";
import { blob_file } from "./bytes.ts";
import {
  type Chunks,
  type FileVersion,
  MemoryWriter,
  memory_store,
  type Store,
  type StoredCopy,
  type StoreWriter,
} from "./download_store.ts";
import type { Place } from "./storage_types.ts";
import type { RandomAccessFile } from "./types.ts";

/** A browser's fetch hides redirects, and needs the host's permission for some headers. */
export const fetch_is_unrestricted = false;

/** The hub announces a file's SHA-256 in a redirect, which a browser hides, and Web Crypto can't hash in pieces. */
export const sha256_of: ((chunks: Chunks, check: () => void) => Promise<string>) | undefined = undefined;

/** Downloads are stored in pieces of this size, so that they can be resumed. */
const PART_BYTES = 16 * 1024 * 1024;
const KEY_PARAMETER = "vit-msn";

/** The URL of an address in a page; undefined if it may be a hub repo id. */
export async function find_place(source: string | URL): Promise<Place | undefined> {
  const address = String(source);
  if (/^https?:/i.test(address) || is_own_scheme(address)) return { url: address };
  if (/^[./]/.test(address)) return { url: new URL(address, page_url()).href };
  if (!/^[a-z][a-z0-9+.-]*:/i.test(address)) return undefined;
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${address.slice(0, 200)} can't be opened here: pass an http(s) URL, a path on the page's server, a hub repository, or the files themselves.`,
  );
}

/** A hint for a repository that can't be loaded. */
export function folder_hint(path: string): string {
  return `If ${JSON.stringify(path)} is a path on the page's server, begin it with "/" or "./".`;
}

/** Whether an address has the page's own scheme, such as an extension's (chrome-extension:) or a desktop app's (tauri:). */
function is_own_scheme(address: string): boolean {
  const scheme = globalThis.location?.protocol ?? "";
  return /^[a-z][a-z0-9+.-]*:$/.test(scheme) && scheme !== "file:" && address.startsWith(`${scheme}//`);
}

function page_url(): string {
  return typeof document === "undefined" ? globalThis.location?.href : document.baseURI;
}

/** Browsers don't let https pages load over http. */
export const may_send_token = (_url: URL): boolean => true;

export async function open_local_file(
  folder: string,
  _segments: string[],
): Promise<RandomAccessFile | undefined> {
  throw new VitMsnError("UNSUPPORTED", `${folder} can't be opened: local folders aren't available here.`);
}

/**
 * The cache of `url`'s download: the Cache API, or memory if there is none (an insecure page), if it is out of reach (a
 * sandboxed frame, blocked cookies), or if it doesn't take the URL's scheme.
 */
export async function download_store(url: URL, _cache_dir: string | undefined): Promise<Store> {
  try {
    if (/^https?:$/.test(url.protocol)) return new CacheStore(url, await caches.open(env.cache_key));
  } catch {
    // Not even the name `caches` can be read in a sandboxed frame.
  }
  return memory_store(show_url(url));
}

interface StoredMeta extends StoredCopy {
  /** The name of this version's parts. */
  id: string;
  parts: number;
}

class CacheStore implements Store {
  readonly place: string;
  readonly #url: URL;
  readonly #cache: Cache;

  constructor(url: URL, cache: Cache) {
    this.#url = url;
    this.#cache = cache;
    this.place = `the cache "${env.cache_key}"`;
  }

  async find(): Promise<StoredMeta | undefined> {
    const meta = await this.read_meta("whole");
    if (!meta || meta.missing) return meta;
    // The browser may have evicted a part.
    return (await this.#read_parts(meta)) ? meta : undefined;
  }

  async open(): Promise<RandomAccessFile> {
    const meta = await this.read_meta("whole");
    const parts = meta && (await this.#read_parts(meta));
    if (!parts)
      throw new VitMsnError(
        "IO",
        `${show_url(this.#url)} has been removed from the browser's cache; load it again.`,
      );
    return blob_file(show_url(this.#url), new Blob(parts));
  }

  async mark_missing(): Promise<void> {
    await this.remove();
    await this.put_meta("whole", { id: "", parts: 0, size: 0, missing: true });
  }

  async write(): Promise<StoreWriter> {
    const writer = new CacheWriter(this, show_url(this.#url));
    await writer.resume();
    return writer;
  }

  async read_meta(kind: "whole" | "partial"): Promise<StoredMeta | undefined> {
    try {
      const response = await this.#cache.match(this.#key(kind));
      return response && ((await response.json()) as StoredMeta);
    } catch {
      return undefined;
    }
  }

  /** false if the browser refuses, usually for lack of space. */
  async put_meta(kind: "whole" | "partial", meta: StoredMeta): Promise<boolean> {
    return this.#put(this.#key(kind), new Blob([JSON.stringify(meta)]));
  }

  async put_part(id: string, index: number, part: Blob): Promise<boolean> {
    return this.#put(this.#key(`${id}-${index}`), part);
  }

  async read_part(id: string, index: number): Promise<Blob | undefined> {
    const response = await this.#cache.match(this.#key(`${id}-${index}`));
    return response?.blob();
  }

  async delete_partial(): Promise<void> {
    await this.#cache.delete(this.#key("partial"));
  }

  /** Removes everything cached for this URL except the parts of version `keep_id`. */
  async remove(keep_id?: string): Promise<void> {
    const keys = await this.#cache.keys(this.#url.href, { ignoreSearch: true });
    const stale = keys.filter(
      ({ url }) => this.#is_own(url) && !(keep_id && this.#part_of(url)?.startsWith(`${keep_id}-`)),
    );
    await Promise.all(stale.map((key) => this.#cache.delete(key)));
  }

  async #read_parts(meta: StoredMeta): Promise<Blob[] | undefined> {
    const parts = await Promise.all(
      Array.from({ length: meta.parts }, (_, index) => this.read_part(meta.id, index)),
    );
    const present = parts.filter((part) => part !== undefined);
    const size = present.reduce((sum, part) => sum + part.size, 0);
    return present.length === meta.parts && size === meta.size ? present : undefined;
  }

  async #put(key: string, body: Blob): Promise<boolean> {
    try {
      await this.#cache.put(key, new Response(body));
      return true;
    } catch {
      return false;
    }
  }

  #key(what: string): string {
    const url = new URL(this.#url);
    url.searchParams.set(KEY_PARAMETER, what);
    return url.href;
  }

  #part_of(url: string): string | null {
    return new URL(url).searchParams.get(KEY_PARAMETER);
  }

  /** Whether a key belongs to this URL, its query included. */
  #is_own(url: string): boolean {
    const part = this.#part_of(url);
    return part !== null && this.#key(part) === url;
  }
}

/** Caches a download in parts. If the cache refuses one, the rest stays in memory. */
class CacheWriter implements StoreWriter {
  etag: string | undefined;
  #id = "";
  #version: FileVersion = {};
  /** Whole parts; the first `stored` are in the cache, the others in memory. */
  #parts: Blob[] = [];
  #stored = 0;
  #rest: MemoryWriter;
  #is_cached = true;
  readonly #store: CacheStore;
  readonly #name: string;

  constructor(store: CacheStore, name: string) {
    this.#store = store;
    this.#name = name;
    this.#rest = new MemoryWriter(name);
  }

  get size(): number {
    return this.#parts.length * PART_BYTES + this.#rest.size;
  }

  async resume(): Promise<void> {
    const meta = await this.#store.read_meta("partial");
    if (!meta?.etag) return;
    this.#version = { etag: meta.etag, last_modified: meta.last_modified };
    this.etag = meta.etag;
    this.#id = meta.id;
    for (let part = await this.#next_part(); part?.size === PART_BYTES; part = await this.#next_part()) {
      this.#parts.push(part);
      this.#stored++;
    }
  }

  #next_part(): Promise<Blob | undefined> {
    return this.#store.read_part(this.#id, this.#parts.length);
  }

  async restart(version: FileVersion, resumable: boolean): Promise<void> {
    this.#version = version;
    this.#parts = [];
    this.#stored = 0;
    this.#rest = new MemoryWriter(this.#name);
    this.etag = resumable ? version.etag : undefined;
    // Two pages that download one version write the same parts under the same names.
    this.#id = this.etag ?? crypto.randomUUID();
    const meta = { ...version, id: this.#id, parts: 0, size: 0, missing: false };
    if (this.etag) this.#is_cached = await this.#store.put_meta("partial", meta);
  }

  async append(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.byteLength; ) {
      const piece = bytes.subarray(done, done + PART_BYTES - this.#rest.size);
      await this.#rest.append(piece);
      done += piece.byteLength;
      if (this.#rest.size === PART_BYTES) await this.#finish_part();
    }
  }

  async commit(): Promise<RandomAccessFile> {
    const size = this.size;
    if (this.#rest.size > 0) this.#parts.push(this.#rest.take());
    await this.#store_parts();
    const meta = { ...this.#version, id: this.#id, parts: this.#parts.length, size, missing: false };
    if (this.#is_cached) await this.#store.remove(this.#id);
    if (this.#is_cached) this.#is_cached = await this.#store.put_meta("whole", meta);
    if (!this.#is_cached) {
      env.warn(
        `${this.#name} isn't cached, because the browser's storage has no room for it; it will be downloaded again.`,
      );
      await this.#store.remove();
    }
    return blob_file(this.#name, new Blob(this.#parts));
  }

  async close(): Promise<void> {
    this.#parts = [];
  }

  async #finish_part(): Promise<void> {
    this.#parts.push(this.#rest.take());
    if (this.etag) await this.#store_parts();
  }

  /** Moves parts to the cache and reads them back from there, so that they need no memory. */
  async #store_parts(): Promise<void> {
    for (; this.#is_cached && this.#stored < this.#parts.length; this.#stored++) {
      const part = this.#parts[this.#stored] as Blob;
      this.#is_cached = await this.#store.put_part(this.#id, this.#stored, part);
      if (this.#is_cached)
        this.#parts[this.#stored] = (await this.#store.read_part(this.#id, this.#stored)) ?? part;
    }
  }
}
