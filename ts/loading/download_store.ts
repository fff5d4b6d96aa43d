import { blob_file } from "./bytes.ts";
import type { RandomAccessFile } from "./types.ts";

/** The version of a file, as its server reports it. */
export interface FileVersion {
  etag?: string;
  last_modified?: string;
}

/** The record of a cached copy. */
export interface StoredCopy extends FileVersion {
  size: number;
  /** The server reported that the file doesn't exist; used while the server can't be reached. */
  missing: boolean;
}

/** The cache of one URL's download. */
export interface Store {
  /** For messages: a path, or the cache's name. */
  readonly place: string;
  /** The complete copy, or the mark that the file doesn't exist; undefined if neither is cached. */
  find(): Promise<StoredCopy | undefined>;
  open(): Promise<RandomAccessFile>;
  mark_missing(): Promise<void>;
  /** Starts a download, or resumes an interrupted one. Always close the writer. */
  write(): Promise<StoreWriter>;
}

export type Chunks = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/** A download in progress. */
export interface StoreWriter {
  /** Bytes held so far, including those of an earlier attempt. */
  readonly size: number;
  /** The strong ETag of the bytes held so far; without it the download can't be resumed. */
  readonly etag: string | undefined;
  /** Restarts from nothing with this version. `resumable`: store the partial download if it is interrupted. */
  restart(version: FileVersion, resumable: boolean): Promise<void>;
  append(bytes: Uint8Array): Promise<void>;
  /**
   * Announces the size of the whole file, if known. Throws IO if there is no room; absent if the runtime can't check.
   */
  expect?(size: number | undefined): Promise<void>;
  /** The bytes held so far, for hashing; absent if the runtime has no incremental hash. */
  chunks?(): Chunks;
  /** Call when the file is complete: stores and opens it. */
  commit(): Promise<RandomAccessFile>;
  close(): Promise<void>;
}

/** Holds a download only while it is used: for runtimes without a cache and for `env.use_cache = false`. */
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

  /** Returns the bytes collected so far and forgets them. */
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
