import { VitMsnError } from "../errors.ts";
import { show_url } from "../network/show_url.ts";
import { check_range } from "./bytes.ts";
import { type FileVersion, memory_store, type Store, type StoreWriter } from "./download_store.ts";
import { find_place as find_web_place } from "./storage.web.ts";
import type { Place } from "./storage_types.ts";
import type { RandomAccessFile } from "./types.ts";

export { folder_hint, may_send_token, open_local_file, sha256_of } from "./storage.web.ts";

/** fetch exposes redirects and sends any header. */
export const fetch_is_unrestricted = true;

/** The URL of an address; undefined if it may be a hub repo id. */
export async function find_place(source: string | URL): Promise<Place | undefined> {
  const address = String(source);
  if (!/^([./]|file:)/i.test(address)) return find_web_place(source);
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${address.slice(0, 200)} can't be opened here: an edge worker has neither folders nor a base URL. Pass an http(s) ` +
      "URL, a hub repository, or the files themselves.",
  );
}

/** Memory is scarce, and a Blob would copy the download on creation and on each read. */
const PIECE_BYTES = 4 * 1024 * 1024;

/** Downloads aren't cached here: the platform's fetch has its own cache. */
export async function download_store(url: URL, _cache_dir: string | undefined): Promise<Store> {
  return { ...memory_store(show_url(url)), write: async () => new PieceWriter(show_url(url)) };
}

/** Collects a download in pieces of one size. */
class PieceWriter implements StoreWriter {
  size = 0;
  etag: string | undefined;
  #pieces: Uint8Array[] = [];
  readonly #name: string;

  constructor(name: string) {
    this.#name = name;
  }

  async restart(version: FileVersion, resumable: boolean): Promise<void> {
    this.size = 0;
    this.#pieces = [];
    this.etag = resumable ? version.etag : undefined;
  }

  async append(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const at = this.size % PIECE_BYTES;
      if (at === 0) this.#pieces.push(new Uint8Array(PIECE_BYTES));
      const part = bytes.subarray(done, done + PIECE_BYTES - at);
      this.#pieces.at(-1)?.set(part, at);
      this.size += part.length;
      done += part.length;
    }
  }

  async commit(): Promise<RandomAccessFile> {
    return piece_file(this.#name, this.#pieces, this.size);
  }

  async close(): Promise<void> {
    this.#pieces = [];
  }
}

function piece_file(name: string, pieces: readonly Uint8Array[], size: number): RandomAccessFile {
  return {
    name,
    size,
    async read(offset, length) {
      check_range(name, size, offset, length);
      const start = offset % PIECE_BYTES;
      if (start + length <= PIECE_BYTES) {
        return (pieces[Math.floor(offset / PIECE_BYTES)] as Uint8Array).subarray(start, start + length);
      }
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const at = (offset + done) % PIECE_BYTES;
        const piece = pieces[Math.floor((offset + done) / PIECE_BYTES)] as Uint8Array;
        const part = piece.subarray(at, at + length - done);
        bytes.set(part, done);
        done += part.length;
      }
      return bytes;
    },
    async close() {},
  };
}
