import { find_snapshot, resolve_folder } from "#snapshots";
import { find_place, folder_hint, open_local_file } from "#storage";
import { env } from "../env.ts";
import { type ErrorCode, invalid_argument, show, throw_if_aborted, VitMsnError } from "../errors.ts";
import { is_a } from "../is_a.ts";
import { type SplitUrl, split_credentials } from "../network/credentials.ts";
import { show_url } from "../network/show_url.ts";
import { is_record } from "../options.ts";
import { open_mapped_file } from "./file_map.ts";
import { open_remote } from "./hub.ts";
import { folder_segments, path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import type { LoadOptions, ModelSource, PretrainedSource, RandomAccessFile } from "./types.ts";

type OpenFile = (
  segments: string[],
  progress: Progress,
  max_bytes?: number,
) => Promise<RandomAccessFile | undefined>;

const REPO_ID = /^[\w][\w.-]{0,95}(?:\/[\w][\w.-]{0,95})?$/;
const COMMIT_HASH = /^[0-9a-f]{40}$/;

/**
 * Opens the source of from_pretrained: a local folder, a hub repo id ("org/name"), a base URL, or a map of files.
 * In browsers a path ("/models/fashion", "./models") is a URL relative to the page. Nothing is read yet.
 */
export async function open_source(source: PretrainedSource, options: LoadOptions = {}): Promise<ModelSource> {
  const subfolder = folder_segments(options.subfolder);
  if (typeof source !== "string" && !is_a(source, "URL")) {
    if (!is_record(source) || is_a(source, "Blob", "File") || ArrayBuffer.isView(source)) {
      throw invalid_argument(
        `A model must be a path, a hub repo id, a URL or a map of files, got ${show(source)}.`,
      );
    }
    return make_source("The map of files", options, subfolder, (segments, progress, max_bytes) =>
      open_mapped_file(
        source,
        segments.join("/"),
        { immutable: false, options, progress, max_bytes },
        open_source,
      ),
    );
  }
  const place = await find_place(source);
  if (place?.folder !== undefined) {
    const folder = await resolve_folder(place.folder, options.revision);
    return make_source(folder, options, subfolder, (segments) => open_local_file(folder, segments));
  }
  if (place?.url !== undefined) {
    const { url, authorization } = parse_base(place.url);
    const remote = { immutable: false, options, authorization };
    return make_source(show_url(url), options, subfolder, (segments, progress, max_bytes) =>
      open_remote(file_url(url, segments), { ...remote, progress, max_bytes }),
    );
  }
  return hub_source(String(source), options, subfolder);
}

async function hub_source(repo: string, options: LoadOptions, subfolder: string[]): Promise<ModelSource> {
  const { revision, cache_dir } = options;
  hub_url(repo, revision);
  const snapshot = await find_snapshot(repo, revision ?? "main", subfolder, cache_dir);
  const { url: base, authorization } = hub_url(repo, snapshot?.commit ?? revision);
  // A commit never changes, so its copy is current without asking the hub.
  const immutable = COMMIT_HASH.test(snapshot?.commit ?? revision ?? "");
  return make_source(repo, options, subfolder, async (segments, progress, max_bytes) => {
    const found = await snapshot?.open(segments);
    if (found || (await snapshot?.is_absent(segments))) return found;
    try {
      const remote = { immutable, progress, options, max_bytes, authorization };
      return await open_remote(file_url(base, segments), remote);
    } catch (error) {
      // A file that a snapshot lacks may be optional. Without a snapshot, undefined would hide the reason.
      if (snapshot && error instanceof VitMsnError && error.code === "OFFLINE") return undefined;
      throw with_folder_hint(error, repo);
    }
  });
}

const UNREACHED: ReadonlySet<ErrorCode> = new Set(["NOT_FOUND", "ACCESS_DENIED", "NETWORK", "OFFLINE"]);

/** A folder's path without "./" is read as a repository's name. If that fails, the user may have meant the folder. */
function with_folder_hint(error: unknown, repo: string): unknown {
  if (!(error instanceof VitMsnError) || !UNREACHED.has(error.code)) return error;
  const { code, message, cause, details } = error;
  return new VitMsnError(code, `${message} ${folder_hint(repo)}`, { cause, details: { ...details } });
}

function make_source(
  name: string,
  options: LoadOptions,
  subfolder: string[],
  open_file: OpenFile,
): ModelSource {
  return {
    name,
    options,
    async open(file, max_bytes) {
      throw_if_aborted(options.signal, `Loading ${name}`);
      const segments = [...subfolder, ...path_segments(file, "file name", "INVALID_CHECKPOINT")];
      const progress = new Progress(options.progress_callback, name, file);
      progress.initiate();
      const opened = await open_file(segments, progress, max_bytes);
      if (opened) progress.done(opened.size);
      return opened;
    },
  };
}

function hub_url(repo: string, revision = "main"): SplitUrl {
  if (!REPO_ID.test(repo)) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${JSON.stringify(show_url(repo).slice(0, 200))} is neither a folder that exists, nor an http(s) URL, nor a hub repository such as ` +
        '"facebook/vit-msn-small".',
      { details: { source: show_url(repo) } },
    );
  }
  path_segments(revision, "revision", "INVALID_ARGUMENT");
  const path = env.remote_path_template
    .replaceAll("{model}", repo)
    .replaceAll("{revision}", encodeURIComponent(revision));
  return parse_base(`${hub_host()}/${path}`);
}

/** Removes slashes at the end. */
function hub_host(): string {
  const host = env.remote_host;
  const url = URL.canParse(host) ? new URL(host) : undefined;
  if (url && /^https?:$/.test(url.protocol) && !/[?#]/.test(host)) return host.replace(/\/+$/, "");
  // Not shown, because it may contain a password.
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    "env.remote_host (HF_ENDPOINT) isn't the URL of a hub; write it as https://host or https://host/path.",
  );
}

function parse_base(address: string): SplitUrl {
  const split = split_credentials(address);
  const { url } = split;
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return split;
}

/** A file below the base, with the base's query (a signature, for example). */
function file_url(base: URL, segments: readonly string[]): URL {
  const url = new URL(base);
  url.pathname += segments.map(encodeURIComponent).join("/");
  return url;
}
