import { opendir } from "node:fs/promises";
import { join } from "node:path";
import { VitMsnError } from "../errors.ts";
import { is_error } from "../is_a.ts";
import { stat } from "./disk.ts";
import { is_code } from "./errors.ts";
import {
  by_code_points,
  decode_name,
  encode_name,
  is_ignored,
  is_special_folder,
  SPECIAL_FOLDER,
} from "./file_names.ts";
import type { SkippedFiles } from "./skipped_files.ts";
import { unsupported_scheme } from "./url_scheme.ts";

/** The number of a folder's names that are strings at a time; those of larger folders wait as bytes. */
const MAX_NAMES = 100_000;

/** The direct content of a folder. Links count as what they lead to, broken ones as files that can't be read. */
export async function read_folder(root: string): Promise<{ folders: string[]; files: string[] }> {
  const content = { folders: [] as string[], files: [] as string[] };
  try {
    await check_folder(root);
    for await (const { name, is_folder } of entries(root))
      (is_folder ? content.folders : content.files).push(name);
  } catch (error) {
    throw system_error(error, root);
  }
  return content;
}

/** A file below a folder. */
export interface WalkedFile {
  /** The names of the folders that lead to it, then its own name. */
  path: readonly string[];
  file: string;
  /** Whether it is a broken link. */
  is_broken: boolean;
}

export interface WalkOptions {
  /** Levels of folders to enter, 1 being the folder itself; default: all. */
  max_depth?: number;
  /** Collects the folders that are skipped. */
  skipped?: SkippedFiles;
}

/**
 * The files below a folder, ordered by the code points of their names, whatever the file system's order. Links are followed
 * unless they lead to a folder above them. Only the names of the folders being listed are in memory.
 */
export async function* walk(
  root: string,
  { max_depth = Number.POSITIVE_INFINITY, skipped }: WalkOptions = {},
): AsyncGenerator<WalkedFile> {
  try {
    await check_folder(root);
    yield* walk_below({ root, path: [], above: [], depth: max_depth, skipped });
  } catch (error) {
    throw system_error(error, root);
  }
}

interface Level {
  root: string;
  path: readonly string[];
  /** The identities of the folders above it. */
  above: readonly string[];
  depth: number;
  skipped: SkippedFiles | undefined;
}

async function* walk_below({ root, path, above, depth, skipped }: Level): AsyncGenerator<WalkedFile> {
  const folder = join(root, ...path);
  const { dev, ino } = await stat(encode_name(folder), { bigint: true });
  const id = `${dev}:${ino}`;
  if (above.includes(id)) return;
  for await (const { name, is_folder, is_broken } of entries(folder)) {
    const below = [...path, name];
    if (!is_folder) yield { path: below, file: join(folder, name), is_broken };
    else if (is_special_folder(name)) skipped?.add_named(SPECIAL_FOLDER, join(folder, name));
    else if (depth > 1)
      yield* walk_below({ root, path: below, above: [...above, id], depth: depth - 1, skipped });
  }
}

async function* entries(folder: string): AsyncGenerator<Entry & { is_folder: boolean; is_broken: boolean }> {
  for await (const { name, is_folder } of sorted_entries(folder)) {
    if (is_ignored(name)) continue;
    if (is_folder !== undefined) yield { name, is_folder, is_broken: false };
    else {
      const found = await stat(encode_name(join(folder, name))).catch(() => undefined);
      yield { name, is_folder: found?.isDirectory() ?? false, is_broken: found === undefined };
    }
  }
}

interface Entry {
  name: string;
  /** undefined for a link, and if the file system doesn't report it. */
  is_folder: boolean | undefined;
}

/**
 * A folder's names in order. The folder is listed once: each `max_names` names are sorted and packed into bytes, and the packs
 * are merged at the end.
 */
export async function* sorted_entries(folder: string, max_names = MAX_NAMES): AsyncGenerator<Entry> {
  const packs: Buffer[] = [];
  let found: Entry[] = [];
  const sort = () => found.sort((a, b) => by_code_points(a.name, b.name));
  // Latin-1 preserves the bytes of any name.
  for await (const entry of await opendir(encode_name(folder), { encoding: "latin1" as BufferEncoding })) {
    if (found.length >= max_names) {
      packs.push(pack(sort()));
      found = [];
    }
    const name = decode_name(Buffer.from(entry.name, "latin1"));
    const is_known = entry.isDirectory() || entry.isFile();
    found.push({ name, is_folder: is_known ? entry.isDirectory() : undefined });
  }
  yield* merge([...packs.map(unpack), sort().values()]);
}

/** The kinds of entries, each before a name and a slash, which no name contains. */
const [FOLDER, FILE, UNKNOWN, SLASH] = [..."df?/"].map((letter) => letter.charCodeAt(0));

function pack(entries: readonly Entry[]): Buffer {
  const kind = ({ is_folder }: Entry) => (is_folder === undefined ? UNKNOWN : is_folder ? FOLDER : FILE);
  const parts = entries.flatMap((entry) => [
    Uint8Array.of(kind(entry) as number),
    Buffer.from(encode_name(entry.name) as string),
    Uint8Array.of(SLASH as number),
  ]);
  return Buffer.concat(parts);
}

function* unpack(bytes: Buffer): Generator<Entry> {
  for (let at = 0; at < bytes.length; ) {
    const end = bytes.indexOf(SLASH as number, at);
    const is_folder = bytes[at] === UNKNOWN ? undefined : bytes[at] === FOLDER;
    yield { name: decode_name(bytes.subarray(at + 1, end)), is_folder };
    at = end + 1;
  }
}

/** Sorted lists as one: pairs of pairs, so that a name is compared with few others. */
function merge(lists: Iterator<Entry>[]): Iterable<Entry> {
  if (lists.length === 1) return { [Symbol.iterator]: () => lists[0] as Iterator<Entry> };
  const half = lists.length >> 1;
  return merge_two(merge(lists.slice(0, half)), merge(lists.slice(half)));
}

function* merge_two(left: Iterable<Entry>, right: Iterable<Entry>): Generator<Entry> {
  const [lefts, rights] = [left[Symbol.iterator](), right[Symbol.iterator]()];
  let [a, b] = [lefts.next(), rights.next()];
  while (!a.done || !b.done) {
    if (!a.done && (b.done || by_code_points(a.value.name, b.value.name) <= 0)) {
      yield a.value;
      a = lefts.next();
    } else if (!b.done) {
      yield b.value;
      b = rights.next();
    }
  }
}

async function check_folder(path: string): Promise<void> {
  if ((await stat(encode_name(path))).isDirectory()) return;
  throw new VitMsnError("INVALID_ARGUMENT", `${path} is a file; expected a folder.`, {
    details: { folder: path },
  });
}

/** Turns system errors into VitMsnErrors. */
function system_error(error: unknown, path: string): unknown {
  if (error instanceof VitMsnError || !is_error(error) || !("syscall" in error)) return error;
  const options = { cause: error, details: { folder: path, code: (error as NodeJS.ErrnoException).code } };
  if (!is_code(error, "ENOENT", "ENOTDIR"))
    return new VitMsnError("IO", `${path}: ${error.message}.`, options);
  return (
    unsupported_scheme(path) ??
    new VitMsnError("NOT_FOUND", `There is no folder ${path}; check the path.`, options)
  );
}
