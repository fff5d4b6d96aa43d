import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { cache_root, replace_file } from "./storage.node.ts";

/** What is kept beside the downloads under a name, "folder/file"; undefined where nothing is. */
export async function read_kept(name: string, cache_dir: string | undefined): Promise<string | undefined> {
  try {
    return await readFile(join(cache_root(cache_dir), name), "utf8");
  } catch {
    return undefined;
  }
}

/** Keeps a text under a name; readers see what was there before or all of it. @throws where it can't be written. */
export async function keep(name: string, text: string, cache_dir: string | undefined): Promise<void> {
  const path = join(cache_root(cache_dir), name);
  await mkdir(dirname(path), { recursive: true });
  await replace_file(path, text);
}
