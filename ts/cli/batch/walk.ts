import { opendir, realpath, stat } from "node:fs/promises";
import { join, relative, sep } from "node:path";
import picomatch from "picomatch";
import { is_image_name } from "../../index.ts";

/** Names of one folder that are held at a time: larger folders are listed several times. */
const MAX_NAMES = 100_000;
const TAR = /\.(tar|tar\.gz|tgz)$/i;

export function is_picture_name(path: string): boolean {
  return is_image_name(path) && !is_hidden(path.slice(path.lastIndexOf("/") + 1));
}

export function is_tar_name(path: string): boolean {
  return TAR.test(path);
}

function is_hidden(name: string): boolean {
  return name.startsWith(".");
}

/**
 * The pictures and tar shards below a folder, in the order of their names' code units, whatever the file system's order.
 * Hidden ones are left out; links are followed, but not into a folder that they are in.
 *
 * @param max_depth folders to go down, 1 being the folder itself.
 */
export async function* walk(folder: string, max_depth = Infinity): AsyncGenerator<string> {
  yield* walk_below(folder, max_depth, []);
}

async function* walk_below(folder: string, depth: number, above: readonly string[]): AsyncGenerator<string> {
  const real = await realpath(folder);
  if (above.includes(real)) return;
  for await (const name of sorted_names(folder)) {
    if (is_hidden(name)) continue;
    const path = join(folder, name);
    const wanted = is_picture_name(name) || is_tar_name(name);
    const found = await stat(path).catch(() => undefined);
    if (found?.isDirectory() && depth > 1) yield* walk_below(path, depth - 1, [...above, real]);
    // A link that leads nowhere is told as a picture that can't be read.
    else if (wanted && (found === undefined || found.isFile())) yield path;
  }
}

/** A folder's names in order. Only MAX_NAMES of them are in memory: the folder is listed once for each so many. */
export async function* sorted_names(folder: string, max_names = MAX_NAMES): AsyncGenerator<string> {
  for (let after = ""; ; ) {
    const names = await smallest_names(folder, after, max_names);
    yield* names;
    if (names.length < max_names) return;
    after = names.at(-1) as string;
  }
}

async function smallest_names(folder: string, after: string, count: number): Promise<string[]> {
  let names: string[] = [];
  const keep_smallest = () => {
    names = names.sort(by_code_units).slice(0, count);
  };
  for await (const { name } of await opendir(folder)) {
    if (name > after) names.push(name);
    if (names.length >= 2 * count) keep_smallest();
  }
  keep_smallest();
  return names;
}

function by_code_units(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

export function is_glob(text: string): boolean {
  return picomatch.scan(text).isGlob === true;
}

/** The pictures and shards that a glob matches, in the order of walk(). */
export async function* walk_glob(glob: string): AsyncGenerator<string> {
  const { base, glob: pattern, prefix } = picomatch.scan(glob);
  const folder = prefix + base || ".";
  if (!(await stat(folder).catch(() => undefined))?.isDirectory()) return;
  const matches = picomatch(pattern);
  const has_any_depth = /\*\*|[{(]/.test(pattern);
  for await (const path of walk(folder, has_any_depth ? Infinity : pattern.split("/").length)) {
    if (matches(relative(folder, path).replaceAll(sep, "/"))) yield path;
  }
}
