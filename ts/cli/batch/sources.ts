import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { encode_name, SkippedFiles } from "../../files/index.ts";
import { RawImage, VitMsnError } from "../../index.ts";
import { unsupported_archive } from "./archives.ts";
import { file_error, is_picture_error } from "./errors.ts";
import { read_lines } from "./list.ts";
import { failing, type Picture } from "./picture.ts";
import { type Patience, read_remote, source_name } from "./remote.ts";
import { from_stream, interruptible } from "./streams.ts";
import { remote_tar_pictures, tar_pictures } from "./tar.ts";
import { is_glob, is_tar_name, walk, walk_glob } from "./walk.ts";

export interface Sources {
  /** Files, folders, globs, tar shards and URLs; "-" is one image from standard input. */
  paths: readonly string[];
  /** Text files with a path or URL on each line; "-" is standard input. */
  lists: readonly string[];
  patience: Patience;
}

/** What all that is read from sources has in common. */
interface Reading {
  patience: Patience;
  signal: AbortSignal;
  /** Counts what is skipped. */
  skipped: SkippedFiles;
  /** Whether the source is an argument, as against a line of a list. */
  is_argument: boolean;
}

/**
 * The images of all sources, in the order in which they are given and in the same order each time. Nothing is held but
 * the folder being listed and the member being read. What can't be read is an image that fails.
 */
export async function* pictures(
  { paths, lists, patience }: Sources,
  signal: AbortSignal,
  skipped = new SkippedFiles(),
): AsyncGenerator<Picture> {
  const reading = { patience, signal, skipped };
  for (const path of paths) yield* expand(path, { ...reading, is_argument: true });
  for (const list of lists) yield* listed(list, { ...reading, is_argument: false });
}

/** Whether the images can be gone through a second time, to count them, at little cost. */
export function can_be_counted({ paths, lists }: Sources): boolean {
  return ![...paths, ...lists].some((source) => source === "-" || (is_remote(source) && is_tar(source)));
}

async function* expand(source: string, reading: Reading): AsyncGenerator<Picture> {
  if (source === "-" && reading.is_argument) yield from_stream("-", () => process.stdin, reading.signal);
  else if (is_remote(source)) yield* remote(source, reading);
  else yield* local(source, reading);
}

async function* remote(url: string, { patience, signal, skipped }: Reading): AsyncGenerator<Picture> {
  const name = source_name(url);
  const archive = unsupported_archive(path_of_url(name));
  if (archive !== undefined) yield failing(name, archive);
  else if (is_tar(url) && /^file:/i.test(url)) yield* shard_of_file_url(url, signal, skipped);
  else if (is_tar(url)) yield* until_damaged(name, remote_tar_pictures(url, patience, signal, skipped));
  else yield { name, read: () => read_remote(url, patience, signal) };
}

async function* shard_of_file_url(
  url: string,
  signal: AbortSignal,
  skipped: SkippedFiles,
): AsyncGenerator<Picture> {
  try {
    const path = fileURLToPath(url);
    yield* until_damaged(url, tar_pictures(path, signal, skipped));
  } catch (error) {
    if (error instanceof VitMsnError) throw error;
    yield failing(url, file_error(error, url));
  }
}

async function* local(path: string, reading: Reading): AsyncGenerator<Picture> {
  const { signal, skipped, is_argument } = reading;
  const found = await stat(encode_name(path)).catch(() => undefined);
  if (found?.isDirectory()) yield* each(path, walk(path, skipped), reading);
  else if (found?.isFIFO() && is_argument) yield from_stream(path, () => createReadStream(path), signal);
  else if (found === undefined && has_scheme(path)) yield* file(path, reading);
  else if (found === undefined && is_argument && is_glob(path))
    yield* each(path, walk_glob(path, skipped), reading);
  else yield* file(path, reading);
}

async function* each(
  folder: string,
  paths: AsyncIterable<string>,
  reading: Reading,
): AsyncGenerator<Picture> {
  let is_empty = true;
  try {
    for await (const path of paths) {
      is_empty = false;
      yield* file(path, reading);
    }
  } catch (error) {
    throw error instanceof VitMsnError ? error : file_error(error, folder);
  }
  if (is_empty) yield empty(folder, "images (by the extensions of their names) and no tar shards");
}

async function* file(path: string, { signal, skipped }: Reading): AsyncGenerator<Picture> {
  const name = source_name(path);
  const archive = unsupported_archive(name);
  if (archive !== undefined) yield failing(name, archive);
  else if (is_tar_name(path) && !has_scheme(path))
    yield* until_damaged(path, tar_pictures(path, signal, skipped));
  else yield { name, read: () => RawImage.read(path, { signal }) };
}

/** A damaged shard fails as an image does, after those that could be read of it. A lost connection ends the run. */
async function* until_damaged(name: string, shard: AsyncGenerator<Picture>): AsyncGenerator<Picture> {
  let is_empty = true;
  try {
    for await (const picture of shard) {
      is_empty = false;
      yield picture;
    }
    if (is_empty) yield empty(name, "images");
  } catch (error) {
    if (!is_picture_error(error) || error.code === "NETWORK") throw error;
    yield failing(name, error);
  }
}

/** Nothing where images were expected is more likely a slip than a wish. */
function empty(name: string, what: string): Picture {
  return failing(name, new VitMsnError("NOT_FOUND", `${name} has no ${what}.`, { details: { file: name } }));
}

async function* listed(list: string, reading: Reading): AsyncGenerator<Picture> {
  const { signal, skipped } = reading;
  const input = list === "-" ? process.stdin : createReadStream(list);
  for await (const { text, error } of read_lines(interruptible(input, list, signal), list)) {
    if (error !== undefined) {
      yield failing(text, error);
      continue;
    }
    const source = await source_of(text);
    if (source === undefined) skipped.count("comment lines of lists");
    else yield* expand(source, reading);
  }
}

/**
 * What a line of a list names: the line as it stands where that exists, else without the spaces around it and the quotes
 * around that. undefined for a comment.
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

/** As s3://; the package says that it can't be read. */
function has_scheme(source: string): boolean {
  return /^[a-z][a-z\d+.-]+:\/\//i.test(source);
}

/** By the path of a URL, without its query. */
function is_tar(source: string): boolean {
  return is_tar_name(path_of_url(source));
}

function path_of_url(url: string): string {
  return /^data:/i.test(url) ? "" : (url.split(/[?#]/, 1)[0] as string);
}
