import type { Snapshot } from "./storage_types.ts";

/** Browsers have no access to other programs' downloads. */
export async function find_snapshot(
  _repo: string,
  _revision: string,
  _subfolder: readonly string[],
  _cache_dir: string | undefined,
): Promise<Snapshot | undefined> {
  return undefined;
}

export async function resolve_folder(folder: string, _revision?: string): Promise<string> {
  return folder;
}
