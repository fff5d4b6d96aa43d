import type { ProgressCallback } from "./types.ts";

/** What an address turned out to be. */
export type Place = { folder: string; url?: undefined } | { url: string; folder?: undefined };

/** Where save_pretrained writes: in Node a folder's path or file: URL, in browsers a directory handle. */
export type SaveDirectory = string | URL | FileSystemDirectoryHandle;

/** The files of a save_pretrained, by name. */
export type FilesToSave = Readonly<Record<string, string | AsyncIterable<Uint8Array>>>;

export interface SaveOptions {
  progress_callback?: ProgressCallback;
  signal?: AbortSignal;
}
