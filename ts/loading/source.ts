import { find_snapshot, resolve_folder } from "#snapshots";
import { find_place, folder_hint, open_local_file } from "#storage";
import { env } from "../env.ts";
import { type ErrorCode, invalid_argument, show, throw_if_aborted, VitMsnError } from "../errors.ts";
import { type SplitUrl, split_credentials } from "../network/credentials.ts";
import { data_url_bytes } from "../network/data_url.ts";
import { show_url } from "../network/show_url.ts";
import { bytes_of, is_record } from "../options.ts";
import { blob_file, memory_file } from "./bytes.ts";
import { open_remote, type RemoteOptions } from "./hub.ts";
import { folder_segments, path_segments } from "./path_segments.ts";
import { Progress } from "./progress.ts";
import type { FileMap, LoadOptions, ModelSource, PretrainedSource, RandomAccessFile } from "./types.ts";

type OpenFile = (
  segments: string[],
  progress: Progress,
  max_bytes?: number,
) => Promise<RandomAccessFile | undefined>;

const REPO_ID = /^[\w][\w.-]{0,95}(?:\/[\w][\w.-]{0,95})?$/;
const COMMIT_HASH = /^[0-9a-f]{40}$/;

/**
 * Opens what from_pretrained is given: a local folder, a hub repo id ("org/name"), a base URL, or a map of files.
 * In browsers a path ("/models/fashion", "./models") is a URL relative to the page. Nothing is read yet.
 */
export async function open_source(source: PretrainedSource, options: LoadOptions = {}): Promise<ModelSource> {
  const subfolder = folder_segments(options.subfolder);
  if (typeof source !== "string" && !(source instanceof URL)) {
    if (!is_record(source) || source instanceof Blob || ArrayBuffer.isView(source)) {
      throw invalid_argument(
        `A model must be a path, a hub repo id, a URL or a map of files, got ${show(source)}.`,
      );
    }
    const name = "The map of files";
    return make_source(name, options, subfolder, async (segments, progress, max_bytes) => {
      const found = find_in_map(source, segments.join("/"), name);
      if (!(found?.content instanceof URL)) return found && map_file(found.name, found.content, name);
      return open_url(found.content, { immutable: false, options, progress, max_bytes });
    });
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
  const base = hub_url(repo, snapshot?.commit ?? revision);
  // A commit never changes, so a copy of it needs no question to the hub.
  const immutable = COMMIT_HASH.test(snapshot?.commit ?? revision ?? "");
  return make_source(repo, options, subfolder, async (segments, progress, max_bytes) => {
    const found = await snapshot?.open(segments);
    if (found || (await snapshot?.is_absent(segments))) return found;
    try {
      return await open_remote(file_url(base, segments), { immutable, progress, options, max_bytes });
    } catch (error) {
      // What a snapshot lacks may be optional; with nothing of the model here, that would hide why.
      if (snapshot && error instanceof VitMsnError && error.code === "OFFLINE") return undefined;
      throw with_folder_hint(error, repo);
    }
  });
}

const UNREACHED: ReadonlySet<ErrorCode> = new Set(["NOT_FOUND", "ACCESS_DENIED", "NETWORK", "OFFLINE"]);

/** A folder's path without "./" is taken for a repository; where that fails, the folder may have been meant. */
function with_folder_hint(error: unknown, repo: string): unknown {
  if (!(error instanceof VitMsnError) || !UNREACHED.has(error.code)) return error;
  const { code, message, cause, details } = error;
  return new VitMsnError(code, `${message} ${folder_hint(repo)}`, { cause, details: { ...details } });
}

/** A file by itself, as a checkpoint of another program. */
export type FileSource = string | URL | Blob | ArrayBuffer | Uint8Array;

/**
 * Opens one file: by its path or URL, or the bytes themselves. Nothing is read yet.
 * @throws VitMsnError NOT_FOUND, and what open_source throws.
 */
export async function open_file(source: FileSource, options: LoadOptions = {}): Promise<RandomAccessFile> {
  if (typeof source !== "string" && !(source instanceof URL)) {
    return map_file((source as Partial<File>).name || "The file", source, "A source");
  }
  const address = String(source);
  const cut = address.search(/[^/\\]*$/);
  const [folder, name] = [address.slice(0, cut) || "./", address.slice(cut)];
  const file =
    name === "" ? undefined : await (await open_source(folder, options)).open(decodeURIComponent(name));
  if (file !== undefined) return file;
  throw new VitMsnError("NOT_FOUND", `There is no file ${show_url(address).slice(0, 300)}.`, {
    details: { source: show_url(address) },
  });
}

function make_source(
  name: string,
  options: LoadOptions,
  subfolder: string[],
  open_file: OpenFile,
): ModelSource {
  return {
    name,
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

/** The file of that name, else the one file of that name inside a folder, as names of a picked folder are given. */
function find_in_map(
  files: FileMap,
  file: string,
  source: string,
): { name: string; content: unknown } | undefined {
  const entries = files instanceof Map ? [...files] : Object.entries(files);
  const exact = entries.find(([name]) => name === file);
  const nested = entries.filter(([name]) => name.endsWith(`/${file}`));
  const depth = (name: string) => name.split("/").length;
  const least = nested.reduce((least, [name]) => Math.min(least, depth(name)), Number.POSITIVE_INFINITY);
  const nearest = nested.filter(([name]) => depth(name) === least);
  if (!exact && nearest.length > 1) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${source} holds ${nearest.length} files ${file} (${nearest.map(([name]) => name).join(", ")}); give those of one model.`,
      { details: { file, names: nearest.map(([name]) => name) } },
    );
  }
  const [name, content] = exact ?? nearest[0] ?? [];
  return name === undefined ? undefined : { name, content };
}

/** A file of a map by its URL; bundlers write small ones into the URL itself. */
async function open_url(address: URL, remote: RemoteOptions): Promise<RandomAccessFile | undefined> {
  if (address.protocol === "data:") return memory_file(show_url(address), data_url_bytes(address.href));
  if (!/^https?:$/.test(address.protocol)) return open_file(address, remote.options);
  const { url, authorization } = split_credentials(address);
  return open_remote(url, { ...remote, authorization });
}

function map_file(name: string, content: unknown, source: string): RandomAccessFile {
  if (content instanceof Uint8Array || content instanceof ArrayBuffer) {
    return memory_file(name, bytes_of(content, name));
  }
  if (content instanceof Blob) return blob_file(name, content);
  throw new VitMsnError(
    "INVALID_ARGUMENT",
    `${source} must hold Blobs, ArrayBuffers, Uint8Arrays or URLs; ${name} is none of them.`,
    {
      details: { file: name },
    },
  );
}

function hub_url(repo: string, revision = "main"): URL {
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
  return parse_base(`${env.remote_host.replace(/\/+$/, "")}/${path}`).url;
}

function parse_base(address: string): SplitUrl {
  const split = split_credentials(address);
  const { url } = split;
  if (!/^https?:$/.test(url.protocol)) {
    throw new VitMsnError(
      "INVALID_ARGUMENT",
      `${show_url(url)} isn't a usable base URL: it must begin with http:// or https://.`,
    );
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return split;
}

/** A file below the base; the base's query (a signature, say) goes along. */
function file_url(base: URL, segments: readonly string[]): URL {
  const url = new URL(base);
  url.pathname += segments.map(encodeURIComponent).join("/");
  return url;
}
