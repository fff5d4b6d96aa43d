import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { encode_name, SkippedFiles } from "../../files/index.ts";
import { RawImage, VitMsnError } from "../../index.ts";
import { unsupported_archive } from "./archives.ts";
import { file_error, is_image_error } from "./errors.ts";
import { read_lines } from "./list.ts";
import { type ListedImage, unreadable } from "./listed_image.ts";
import type { ArchiveReading } from "./members.ts";
import { parquet_images } from "./parquet_images.ts";
import { type DownloadSettings, read_remote, source_name } from "./remote.ts";
import { from_stream, interruptible } from "./streams.ts";
import { remote_tar_images, tar_images } from "./tar.ts";
import { is_glob, is_parquet_name, is_tar_name, is_zip_name, walk, walk_glob } from "./walk.ts";
import { zip_images } from "./zip.ts";

export interface Sources {
  /** Files, folders, globs, tar shards, zip archives, Parquet files and URLs; "-" is one image from standard input. */
  paths: readonly string[];
  /** Text files with a path or URL on each line; "-" is standard input. */
  lists: readonly string[];
  download: DownloadSettings;
}

/** The settings that all reading from sources shares. */
interface Reading extends ArchiveReading {
  download: DownloadSettings;
  /** Whether the source is a command-line argument rather than a line of a list. */
  is_argument: boolean;
}

export type ListOptions = Partial<Pick<ArchiveReading, "skipped" | "is_wanted">>;

/**
 * The images of all sources, in the given order and always in the same one. Only the folder being listed and the member being
 * read are in memory. A source that can't be read is an image that fails.
 */
export async function* list_images(
  { paths, lists, download }: Sources,
  signal: AbortSignal,
  { skipped = new SkippedFiles(), is_wanted = () => true }: ListOptions = {},
): AsyncGenerator<ListedImage> {
  const reading = { download, signal, skipped, is_wanted };
  for (const path of paths) yield* expand(path, { ...reading, is_argument: true });
  for (const list of lists) yield* listed(list, { ...reading, is_argument: false });
}

/** Whether the images can be listed a second time, to count them, at little cost. */
export function can_be_counted({ paths, lists }: Sources): boolean {
  return ![...paths, ...lists].some((source) => source === "-" || (is_remote(source) && is_tar(source)));
}

async function* expand(source: string, reading: Reading): AsyncGenerator<ListedImage> {
  if (source === "-" && reading.is_argument) yield from_stream("-", () => process.stdin);
  else if (is_remote(source)) yield* remote(source, reading);
  else yield* local(source, reading);
}

async function* remote(url: string, reading: Reading): AsyncGenerator<ListedImage> {
  const { download } = reading;
  const name = source_name(url);
  const archive = unsupported_archive(path_of_url(name), is_file_url(url));
  if (archive !== undefined) yield unreadable(name, archive);
  else if (is_file_url(url) && is_archive_name(path_of_url(url))) yield* archive_of_file_url(url, reading);
  else if (is_tar(url)) yield* until_damaged(name, remote_tar_images(url, download, reading));
  else yield { name, read: (options) => read_remote(url, download, options) };
}

async function* archive_of_file_url(url: string, reading: Reading): AsyncGenerator<ListedImage> {
  try {
    const path = fileURLToPath(url);
    yield* until_damaged(url, archive_images(path, reading));
  } catch (error) {
    if (error instanceof VitMsnError) throw error;
    yield unreadable(url, file_error(error, url));
  }
}

async function* local(path: string, reading: Reading): AsyncGenerator<ListedImage> {
  const { skipped, is_argument } = reading;
  const found = await stat(encode_name(path)).catch(() => undefined);
  if (found?.isDirectory()) yield* each(path, walk(path, skipped), reading);
  else if (found?.isFIFO() && is_argument) yield from_stream(path, () => createReadStream(path));
  else if (found === undefined && has_scheme(path)) yield* file(path, reading);
  else if (found === undefined && is_argument && is_glob(path))
    yield* each(path, walk_glob(path, skipped), reading);
  else yield* file(path, reading);
}

async function* each(
  folder: string,
  paths: AsyncIterable<string>,
  reading: Reading,
): AsyncGenerator<ListedImage> {
  let is_empty = true;
  try {
    for await (const path of paths) {
      is_empty = false;
      yield* file(path, reading);
    }
  } catch (error) {
    throw error instanceof VitMsnError ? error : file_error(error, folder);
  }
  if (is_empty) yield empty(folder, "images (by file extension), tar shards or zip archives");
}

async function* file(path: string, reading: Reading): AsyncGenerator<ListedImage> {
  const name = source_name(path);
  const is_file = !has_scheme(path);
  const archive = unsupported_archive(name, is_file);
  if (archive !== undefined) yield unreadable(name, archive);
  else if (is_file && is_archive_name(path)) yield* until_damaged(path, archive_images(path, reading));
  else yield { name, read: (options) => RawImage.read(path, options) };
}

function is_archive_name(path: string): boolean {
  return is_tar_name(path) || is_zip_name(path) || is_parquet_name(path);
}

function archive_images(path: string, reading: Reading): AsyncGenerator<ListedImage> {
  if (is_zip_name(path)) return zip_images(path, reading);
  return is_parquet_name(path) ? parquet_images(path, reading) : tar_images(path, reading);
}

/** A damaged archive counts as an image that fails, after the images before the damage. A lost connection ends the run. */
async function* until_damaged(name: string, shard: AsyncGenerator<ListedImage>): AsyncGenerator<ListedImage> {
  let is_empty = true;
  try {
    for await (const image of shard) {
      is_empty = false;
      yield image;
    }
    if (is_empty) yield empty(name, "images");
  } catch (error) {
    if (!is_image_error(error) || error.code === "NETWORK") throw error;
    yield unreadable(name, error);
  }
}

/** An empty source is more likely a mistake than intended. */
function empty(name: string, what: string): ListedImage {
  return unreadable(
    name,
    new VitMsnError("NOT_FOUND", `${name} contains no ${what}.`, { details: { file: name } }),
  );
}

async function* listed(list: string, reading: Reading): AsyncGenerator<ListedImage> {
  const { signal, skipped } = reading;
  const input = list === "-" ? process.stdin : createReadStream(list);
  let is_empty = true;
  for await (const { text, error } of read_lines(interruptible(input, list, signal), list)) {
    if (error !== undefined) {
      is_empty = false;
      yield unreadable(text, error);
      continue;
    }
    const source = await source_of(text);
    if (source === undefined) {
      skipped.count("comment lines of lists");
      continue;
    }
    is_empty = false;
    yield* expand(source, reading);
  }
  if (is_empty) yield empty(list === "-" ? "The list on standard input" : list, "paths or URLs");
}

/**
 * The source that a line of a list names: the line unchanged if that exists, else without surrounding spaces and quotes.
 * undefined for a comment.
 */
async function source_of(line: string): Promise<string | undefined> {
  const trimmed = line.trim();
  const unquoted = /^(["'])(.+)\1$/.exec(trimmed)?.[2] ?? trimmed;
  for (const text of new Set([line, trimmed, unquoted])) if (await exists(text)) return text;
  return trimmed.startsWith("#") ? undefined : unquoted;
}

async function exists(path: string): Promise<boolean> {
  if (is_remote(path)) return true;
  return stat(encode_name(path)).then(
    () => true,
    () => false,
  );
}

function is_remote(source: string): boolean {
  return /^(https?|data|file):/i.test(source);
}

/** Such as s3://, which RawImage.read refuses with an explanation. */
function has_scheme(source: string): boolean {
  return /^[a-z][a-z\d+.-]+:\/\//i.test(source);
}

/** Judged by the path of a URL, without its query. */
function is_tar(source: string): boolean {
  return is_tar_name(path_of_url(source));
}

function is_file_url(url: string): boolean {
  return /^file:/i.test(url);
}

function path_of_url(url: string): string {
  return /^data:/i.test(url) ? "" : (url.split(/[?#]/, 1)[0] as string);
}
