import type { ProgressCallback, RandomAccessFile } from "./types.ts";

/** The target of an address; `url` has a scheme that fetch can load. */
export type Place = { folder: string; url?: undefined } | { url: string; folder?: undefined };

/** A hub repository's files at a commit, downloaded by another program; some may be missing. */
export interface Snapshot {
  readonly commit: string;
  open(segments: string[]): Promise<RandomAccessFile | undefined>;
  /** Whether the repository is known to lack the file. */
  is_absent(segments: readonly string[]): Promise<boolean>;
}

/** Where save_pretrained writes: in Node a folder's path or file: URL, in browsers a directory handle. */
export type SaveDirectory = string | URL | FileSystemDirectoryHandle;

/** The files that save_pretrained writes, by name. */
export type FilesToSave = Readonly<Record<string, string | AsyncIterable<Uint8Array>>>;

export interface SaveOptions {
  progress_callback?: ProgressCallback;
  signal?: AbortSignal;
}
