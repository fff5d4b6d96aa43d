import { createReadStream } from "node:fs";
import { open, stat } from "node:fs/promises";
import { createInterface } from "node:readline";
import { RawImage, VitMsnError } from "../../index.ts";
import { file_error, is_picture_error } from "./errors.ts";
import { failing, type Picture } from "./picture.ts";
import { type Patience, read_remote, source_name } from "./remote.ts";
import { remote_tar_pictures, tar_pictures } from "./tar.ts";
import { is_glob, is_tar_name, walk, walk_glob } from "./walk.ts";

export interface Sources {
  /** Files, folders, globs, tar shards and URLs; "-" is one picture from standard input. */
  paths: readonly string[];
  /** Text files with a path or URL on each line; "-" is standard input. */
  lists: readonly string[];
  patience: Patience;
}

/**
 * The pictures of all sources, in the order in which they are given and in the same order each time. Nothing is held but
 * the folder being listed and the member being read. What can't be read is a picture that fails.
 */
export async function* pictures(sources: Sources, signal: AbortSignal): AsyncGenerator<Picture> {
  for (const path of sources.paths) yield* expand(path, sources.patience, signal, true);
  for (const list of sources.lists) {
    for await (const line of lines(list)) yield* expand(line, sources.patience, signal, false);
  }
}

/** Whether the pictures can be gone through a second time, to count them, at little cost. */
export function can_be_counted({ paths, lists }: Sources): boolean {
  return ![...paths, ...lists].some((source) => source === "-" || (is_remote(source) && is_tar(source)));
}

async function* expand(
  source: string,
  patience: Patience,
  signal: AbortSignal,
  with_globs: boolean,
): AsyncGenerator<Picture> {
  if (source === "-" && with_globs) yield standard_input();
  else if (is_remote(source)) yield* remote(source, patience, signal);
  else yield* local(source, signal, with_globs);
}

async function* remote(url: string, patience: Patience, signal: AbortSignal): AsyncGenerator<Picture> {
  if (is_tar(url) && IS_URL.test(url))
    yield* until_damaged(source_name(url), remote_tar_pictures(url, patience, signal));
  else yield { name: source_name(url), read: () => read_remote(url, patience, signal) };
}

async function* local(path: string, signal: AbortSignal, with_globs: boolean): AsyncGenerator<Picture> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) yield* each(path, walk(path), signal);
  else if (found === undefined && with_globs && is_glob(path)) yield* each(path, walk_glob(path), signal);
  else yield* file(path, signal);
}

async function* each(
  folder: string,
  paths: AsyncIterable<string>,
  signal: AbortSignal,
): AsyncGenerator<Picture> {
  let is_empty = true;
  try {
    for await (const path of paths) {
      is_empty = false;
      yield* file(path, signal);
    }
  } catch (error) {
    throw error instanceof VitMsnError ? error : file_error(error, folder);
  }
  if (is_empty)
    yield empty(folder, "pictures (PNG, JPEG, WebP, AVIF, GIF or TIFF, by their names) and no tar shards");
}

async function* file(path: string, signal: AbortSignal): AsyncGenerator<Picture> {
  if (is_tar_name(path)) yield* until_damaged(path, tar_pictures(path, signal));
  else yield { name: path, read: () => RawImage.read(path, { signal }) };
}

/** A damaged shard fails as a picture does, after those that could be read of it. A lost connection ends the run. */
async function* until_damaged(name: string, shard: AsyncGenerator<Picture>): AsyncGenerator<Picture> {
  let is_empty = true;
  try {
    for await (const picture of shard) {
      is_empty = false;
      yield picture;
    }
    if (is_empty) yield empty(name, "pictures");
  } catch (error) {
    if (!is_picture_error(error) || error.code === "NETWORK") throw error;
    yield failing(name, error);
  }
}

/** Nothing where pictures were expected is more likely a slip than a wish. */
function empty(name: string, what: string): Picture {
  return failing(name, new VitMsnError("NOT_FOUND", `${name} has no ${what}.`, { details: { file: name } }));
}

function standard_input(): Picture {
  const read = async () => {
    const chunks: Uint8Array[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Uint8Array);
    return RawImage.read(Buffer.concat(chunks));
  };
  return { name: "-", read };
}

/** The lines of a list that aren't blank. */
async function* lines(list: string): AsyncGenerator<string> {
  if (list !== "-") await check_readable(list);
  const input = list === "-" ? process.stdin : createReadStream(list);
  for await (const line of createInterface({ input, crlfDelay: Infinity }))
    if (line.trim() !== "") yield line;
}

async function check_readable(list: string): Promise<void> {
  try {
    await (await open(list)).close();
  } catch (error) {
    throw file_error(error, list);
  }
}

const IS_URL = /^(https?|data|file):/i;

/** Addresses with an unknown scheme ("s3://") count, too: the package says what it can't read. */
function is_remote(source: string): boolean {
  return IS_URL.test(source) || /^[a-z][a-z0-9+.-]+:\/\//i.test(source);
}

/** By the path of a URL, without its query. */
function is_tar(source: string): boolean {
  return is_tar_name(source.split(/[?#]/, 1)[0] as string);
}
