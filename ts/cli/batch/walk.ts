import { stat } from "node:fs/promises";
import { relative, sep } from "node:path";
import picomatch from "picomatch";
import { encode_name, type SkippedFiles, walk as walk_files } from "../../files/index.ts";
import { is_image_name } from "../../index.ts";

const TAR = /\.(tar|tar\.gz|tgz)$/i;

export function is_tar_name(path: string): boolean {
  return TAR.test(path);
}

export function is_zip_name(path: string): boolean {
  return /\.zip$/i.test(path);
}

export function is_parquet_name(path: string): boolean {
  return /\.parquet$/i.test(path);
}

export interface WalkLimits {
  /** Levels of folders to enter, 1 being the folder itself; default: all. */
  max_depth?: number;
  /** Whether a file is wanted; default: every file. */
  is_wanted?(path: string): boolean;
  /** Whether Parquet files are. Outputs of this program are such files, and may be in the folder of their images. */
  has_parquet?: boolean;
}

function is_archive(name: string): boolean {
  return is_tar_name(name) || is_zip_name(name);
}

/** The images, tar shards and zip archives below a folder, in order; other files are counted in `skipped`. */
export async function* walk(
  folder: string,
  skipped: SkippedFiles,
  { max_depth, is_wanted = () => true, has_parquet = false }: WalkLimits = {},
): AsyncGenerator<string> {
  const limits = max_depth === undefined ? { skipped } : { skipped, max_depth };
  for await (const found of walk_files(folder, limits)) {
    if (!is_wanted(found.file)) continue;
    const name = found.path.at(-1) as string;
    if (is_image_name(name) || is_archive(name) || (has_parquet && is_parquet_name(name))) yield found.file;
    else skipped.add_file(found);
  }
}

export function is_glob(text: string): boolean {
  return picomatch.scan(text).isGlob === true;
}

/** The images and archives that a glob matches, in the order of walk(). */
export async function* walk_glob(glob: string, skipped: SkippedFiles): AsyncGenerator<string> {
  const { base, glob: pattern, prefix } = picomatch.scan(glob);
  const folder = prefix + base || ".";
  if (!(await stat(encode_name(folder)).catch(() => undefined))?.isDirectory()) return;
  const matches = picomatch(pattern);
  const has_any_depth = /\*\*|[{(]/.test(pattern);
  yield* walk(folder, skipped, {
    has_parquet: true,
    max_depth: has_any_depth ? Number.POSITIVE_INFINITY : pattern.split("/").length,
    is_wanted: (path) => matches(relative(folder, path).replaceAll(sep, "/")),
  });
}
