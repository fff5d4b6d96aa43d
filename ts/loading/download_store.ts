import { blob_file } from "./bytes.ts";
import type { RandomAccessFile } from "./types.ts";

/** Which version of a file it is, as its server tells. */
export interface FileVersion {
  etag?: string;
  last_modified?: string;
}

/** What is known of a copy that is kept. */
export interface StoredCopy extends FileVersion {
  size: number;
  /** The server said that the file isn't there, which is worth knowing when it can't be asked. */
  missing: boolean;
}

/** Where one URL's download is kept. */
export interface Store {
  /** For messages: a path, or the cache's name. */
  readonly place: string;
  /** The whole copy or the mark that there is none; undefined when nothing whole is kept. */
  find(): Promise<StoredCopy | undefined>;
  open(): Promise<RandomAccessFile>;
  mark_missing(): Promise<void>;
  /** Begins a download, or goes on with one that broke off. Close it in any case. */
  write(): Promise<StoreWriter>;
}

export type Chunks = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/** A download on its way. */
export interface StoreWriter {
  /** Bytes held so far, those of an earlier try included. */
  readonly size: number;
  /** The strong ETag of the bytes held so far, without which they can't be gone on with. */
  readonly etag: string | undefined;
  /** Begins again from nothing with this version. `resumable`: keep what arrived if the download breaks off. */
  restart(version: FileVersion, resumable: boolean): Promise<void>;
  append(bytes: Uint8Array): Promise<void>;
  /** Says how long the whole file will be, if that is known. Throws IO where there is no room; absent where nobody can tell. */
  expect?(size: number | undefined): Promise<void>;
  /** The bytes held so far, to be hashed; absent where the runtime has no hash that takes them in pieces. */
  chunks?(): Chunks;
  /** The file is whole: keeps and opens it. */
  commit(): Promise<RandomAccessFile>;
  close(): Promise<void>;
}

/** Keeps a download only as long as it is used: for runtimes without a cache and for `env.use_cache = false`. */
export function memory_store(url: string): Store {
  return {
    place: "memory",
    find: async () => undefined,
    open: async () => {
      throw new TypeError("A memory store finds nothing that could be opened.");
    },
    mark_missing: async () => {},
    write: async () => new MemoryWriter(url),
  };
}

/** Collects a download in Blobs, which browsers may move to disk. */
export class MemoryWriter implements StoreWriter {
  size = 0;
  etag: string | undefined;
  #chunks: Uint8Array<ArrayBuffer>[] = [];
  readonly #name: string;

  constructor(name: string) {
    this.#name = name;
  }

  async restart(version: FileVersion, resumable: boolean): Promise<void> {
    this.size = 0;
    this.#chunks = [];
    this.etag = resumable ? version.etag : undefined;
  }

  async append(bytes: Uint8Array): Promise<void> {
    this.#chunks.push(bytes as Uint8Array<ArrayBuffer>);
    this.size += bytes.byteLength;
  }

  chunks(): Chunks {
    return this.#chunks;
  }

  async commit(): Promise<RandomAccessFile> {
    return blob_file(this.#name, this.take());
  }

  /** What was collected so far, which is then forgotten. */
  take(): Blob {
    const blob = new Blob(this.#chunks);
    this.#chunks = [];
    this.size = 0;
    return blob;
  }

  async close(): Promise<void> {
    this.#chunks = [];
  }
}
