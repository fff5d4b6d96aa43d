import { readdir, readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { default_host } from "#environment";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { read_variable } from "../network/proxy_settings.node.ts";
import { open_local_file } from "./storage.node.ts";
import type { Snapshot } from "./storage_types.ts";

const COMMIT = /^[0-9a-f]{7,64}$/;

/** A hub repository's revision in the cache of Python's huggingface_hub; undefined if it has none. */
export async function find_snapshot(
  repo: string,
  revision: string,
  subfolder: readonly string[],
  cache_dir: string | undefined,
): Promise<Snapshot | undefined> {
  // The cache is for one host: on another, the same name is another repository.
  if (env.remote_host !== default_host || !env.use_cache) return undefined;
  const root = join(hub_cache(cache_dir), `models--${repo.replaceAll("/", "--")}`);
  const commit = await commit_of(root, revision);
  if (commit === undefined) return undefined;
  const folder = join(root, "snapshots", commit);
  if (!(await has_config(join(folder, ...subfolder)))) return undefined;
  return {
    commit,
    open: (segments) => open_local_file(folder, segments),
    // An empty file of this name means that the repository lacks it.
    is_absent: (segments) => is_there(join(root, ".no_exist", commit, ...segments)),
  };
}

/** The cache's folder, from the variables that huggingface_hub reads. */
function hub_cache(cache_dir: string | undefined): string {
  const own =
    cache_dir ?? env.cache_dir ?? read_variable("HF_HUB_CACHE") ?? read_variable("HUGGINGFACE_HUB_CACHE");
  if (own !== undefined) return own;
  const cache = read_variable("XDG_CACHE_HOME") ?? join(homedir(), ".cache");
  return join(read_variable("HF_HOME") ?? join(cache, "huggingface"), "hub");
}

async function commit_of(root: string, revision: string): Promise<string | undefined> {
  const named = await readFile(join(root, "refs", ...revision.split("/")), "utf8").catch(() => revision);
  return COMMIT.test(named.trim()) ? named.trim() : undefined;
}

const has_config = (folder: string): Promise<boolean> => is_there(join(folder, "config.json"));

const is_there = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/**
 * The folder with the files: the snapshot for a "models--org--name" of huggingface_hub's cache, else the folder itself.
 * @throws VitMsnError NOT_FOUND if the cache lacks the revision.
 */
export async function resolve_folder(folder: string, revision = "main"): Promise<string> {
  const snapshots = join(folder, "snapshots");
  if ((await has_config(folder)) || !(await is_there(snapshots))) return folder;
  const commits: string[] = await readdir(snapshots).catch(() => []);
  const commit = await commit_of(folder, revision);
  if (commit !== undefined && commits.includes(commit)) return join(snapshots, commit);
  if (commits.length === 1 && revision === "main") return join(snapshots, commits[0] as string);
  throw new VitMsnError(
    "NOT_FOUND",
    `${folder} is the cache of a hub repository without the revision ${JSON.stringify(revision)}; pass one of its ` +
      `folders below snapshots: ${commits.slice(0, 10).join(", ") || "there is none"}.`,
    { details: { source: folder, revision, snapshots: commits } },
  );
}
