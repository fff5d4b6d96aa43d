import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { cache_root, replace_file } from "./storage.node.ts";

/** The text cached next to the downloads under a name, "folder/file"; undefined if there is none. */
export async function read_entry(name: string, cache_dir: string | undefined): Promise<string | undefined> {
  try {
    return await readFile(join(cache_root(cache_dir), name), "utf8");
  } catch {
    return undefined;
  }
}

/** Caches a text under a name; readers see the old text or all of the new one. @throws if it can't be written. */
export async function write_entry(name: string, text: string, cache_dir: string | undefined): Promise<void> {
  const path = join(cache_root(cache_dir), name);
  await mkdir(dirname(path), { recursive: true });
  await replace_file(path, text);
}
