import { createHash, randomUUID } from "node:crypto";
import { constants, createReadStream } from "node:fs";
import {
  access,
  type FileHandle,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  statfs,
  utimes,
  writeFile,
} from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { io_error, is_code } from "../files/errors.ts";
import { host_name, is_alive } from "../files/owner.ts";
import { show_url } from "../network/show_url.ts";
import { check_range } from "./bytes.ts";
import {
  type Chunks,
  type FileVersion,
  MemoryWriter,
  type Store,
  type StoredCopy,
  type StoreWriter,
} from "./download_store.ts";
import type { Place } from "./storage_types.ts";
import type { RandomAccessFile } from "./types.ts";

/** Node's fetch exposes redirects and sends any header; a browser's doesn't. */
export const fetch_is_unrestricted = true;

/** Node reads less than 2 GiB at once. */
const MAX_READ_BYTES = 1 << 30;
/** A download without a new byte for this long is abandoned, whichever machine it ran on. */
const ABANDONED_MS = 600_000;
/** A finished download is hashed in pieces of this size. */
const HASHED_BYTES = 1024 * 1024;
const FREE = "free";
/** How often free disk space is checked during a download of unknown size, and how much there must be. */
const ROOM_STEP_BYTES = 64 * 1024 * 1024;
const ROOM_BYTES = 256 * 1024 * 1024;

/** The folder or URL of an address; undefined if it may be a hub repo id. */
export async function find_place(source: string | URL): Promise<Place | undefined> {
  const address = String(source);
  if (/^https?:/i.test(address)) return { url: address };
  const path = /^file:/i.test(address) ? file_url_path(address) : address;
  const explicit =
    path !== address || isAbsolute(path) || /^\.{0,2}[/\\]|^\.{1,2}$|\\/.test(path) || path === "";
  const info = path === "" ? undefined : await stat(path).catch(() => undefined);
  if (info?.isDirectory()) return { folder: path };
  if (!info && !explicit) return undefined;
  const what = info
    ? "is a file; pass the folder that contains it"
    : "doesn't exist; pass an existing folder, or a hub repository";
  throw new VitMsnError(
    info ? "INVALID_ARGUMENT" : "NOT_FOUND",
    `The model's folder ${JSON.stringify(path)} ${what}.`,
    {
      details: { source: path, resolved: resolve(path) },
    },
  );
}

/** A hint for a repository that can't be loaded. */
export function folder_hint(path: string): string {
  return `If a folder was meant, there is none at ${resolve(path)}; begin a folder's path with "./" or "/".`;
}

export function file_url_path(address: string): string {
  try {
    return fileURLToPath(address);
  } catch (cause) {
    throw new VitMsnError("INVALID_ARGUMENT", `${address} names no local folder.`, { cause });
  }
}

/** A file of a local folder; undefined if it doesn't exist. */
export async function open_local_file(
  folder: string,
  segments: string[],
): Promise<RandomAccessFile | undefined> {
  const path = join(folder, ...segments);
  try {
    // Checked first, because opening a named pipe would wait for its writer.
    if (!(await stat(path)).isFile())
      throw new VitMsnError("IO", `${path} isn't a file.`, { details: { file: path } });
    return disk_file(path, await open(path, constants.O_RDONLY));
  } catch (error) {
    if (is_code(error, "ENOENT", "ENOTDIR")) return undefined;
    throw io_error(`${path} can't be opened`, error);
  }
}

async function disk_file(path: string, handle: FileHandle): Promise<RandomAccessFile> {
  const { size } = await handle.stat();
  return {
    name: path,
    size,
    async read(offset, length) {
      check_range(path, size, offset, length);
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await read_some(path, handle, bytes, done, offset + done);
        // The file was truncated after it was opened.
        if (bytesRead === 0) check_range(path, offset + done, offset, length);
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

async function read_some(path: string, handle: FileHandle, bytes: Uint8Array, at: number, position: number) {
  try {
    return await handle.read(bytes, at, Math.min(bytes.byteLength - at, MAX_READ_BYTES), position);
  } catch (error) {
    throw io_error(`${path} can't be read`, error);
  }
}

const LOOPBACK = /^(?:(?:.+\.)?localhost|127(?:\.\d+){3}|\[::1\])$/;
const warned = new Set<string>();

/** false, with a warning, if a token would be sent unencrypted: over http to another machine. */
export function may_send_token({ protocol, hostname, origin }: URL): boolean {
  if (protocol === "https:" || LOOPBACK.test(hostname) || env.allow_token_over_http) return true;
  if (!warned.has(origin)) {
    env.warn(
      `The hub token isn't sent to ${origin}, because http isn't encrypted: use https, or set env.allow_token_over_http = true.`,
    );
  }
  warned.add(origin);
  return false;
}

/** SHA-256 in hex. `check` is called between chunks and can stop the hashing by throwing. */
export async function sha256_of(chunks: Chunks, check: () => void): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of chunks) {
    hash.update(chunk);
    // Chunks in memory leave no pause in which an abort could arrive.
    await setImmediate();
    check();
  }
  return hash.digest("hex");
}

/** The cache of `url`'s download on disk: below the cache folder, by host and path. */
export async function download_store(url: URL, cache_dir: string | undefined): Promise<Store> {
  const path = join(cache_root(cache_dir), ...cache_path(url));
  return {
    place: path,
    find: () => find_copy(path, url),
    open: async () => disk_file(path, await open(path, constants.O_RDONLY)),
    mark_missing: () => mark_missing(path, url),
    write: () => open_writer(path, url),
  };
}

/** The cache folder. */
export function cache_root(cache_dir: string | undefined): string {
  const chosen = cache_dir ?? env.cache_dir;
  if (chosen) return resolve(chosen);
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "vit-msn");
}

function cache_path(url: URL): string[] {
  const path = `${url.host}${url.pathname}`.split("/").filter((segment) => segment !== "");
  // A server's file mustn't overwrite the cache's own record of another one.
  const safe = path.map((segment) =>
    segment
      .replace(/[^\w.%@+=-]/g, "_")
      .slice(0, 200)
      .replace(/\.(?:meta\.json|incomplete(?:\.json)?|tmp)$/i, "$&_"),
  );
  const file = safe.pop() as string;
  return [...safe, ...(url.search === "" ? [] : [query_hash(url)]), file];
}

/** A query may contain a secret, so its hash replaces it. */
function query_hash(url: URL): string {
  return createHash("sha256").update(url.search).digest("hex").slice(0, 16);
}

/** A download's URL in the form of its record. */
function url_for_meta(url: URL): string {
  return url.search === "" ? url.href : `${show_url(url)}?${query_hash(url)}`;
}

interface StoredMeta extends StoredCopy {
  url: string;
}

async function find_copy(path: string, url: URL): Promise<StoredCopy | undefined> {
  const meta = await read_meta(`${path}.meta.json`);
  if (meta?.url !== url_for_meta(url)) return undefined;
  if (meta.missing) return meta;
  const info = await stat(path).catch(() => undefined);
  return info?.isFile() && info.size === meta.size ? meta : undefined;
}

/** The record of a download; undefined if it is absent or damaged. */
async function read_meta(path: string): Promise<StoredMeta | undefined> {
  try {
    const meta: unknown = JSON.parse(await readFile(path, "utf8"));
    const sound = typeof meta === "object" && meta !== null && "url" in meta && "size" in meta;
    return sound ? (meta as StoredMeta) : undefined;
  } catch {
    return undefined;
  }
}

const write_meta = (path: string, meta: StoredMeta): Promise<void> =>
  replace_file(path, JSON.stringify(meta));

/** Writes a text; readers see the old text or all of the new one. */
export async function replace_file(path: string, text: string): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    await writeFile(temporary, text);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** Doesn't fail if the cache can't be written, because the mark only matters offline. */
async function mark_missing(path: string, url: URL): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await rm(path, { force: true });
    await write_meta(`${path}.meta.json`, { url: url_for_meta(url), size: 0, missing: true });
  } catch (error) {
    if (!is_code(error, ...READ_ONLY)) throw io_error(`${path} can't be written`, error);
  }
}

const READ_ONLY = ["EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR"];

async function open_writer(path: string, url: URL): Promise<StoreWriter> {
  try {
    await mkdir(dirname(path), { recursive: true });
    await access(dirname(path), constants.W_OK);
  } catch (error) {
    if (!is_code(error, ...READ_ONLY)) throw io_error(`${dirname(path)} can't be created`, error);
    env.warn(
      `Downloads aren't cached, because ${dirname(path)} can't be written; set env.cache_dir or cache_dir.`,
    );
    return new MemoryWriter(show_url(url));
  }
  const writer = new DiskWriter(path, url);
  await writer.resume();
  return writer;
}

/**
 * Writes a download into a separate file in the same folder and renames it once it is complete. If several processes
 * download one file, the last rename wins. An interrupted download remains under the owner "free", or under a process
 * that has died; exactly one process takes it over, by renaming it.
 */
class DiskWriter implements StoreWriter {
  size = 0;
  etag: string | undefined;
  #version: FileVersion = {};
  #handle: FileHandle | undefined;
  /** The bytes after which free disk space is checked again. */
  #check_room_at = Number.POSITIVE_INFINITY;
  readonly #path: string;
  readonly #partial: string;
  readonly #url: URL;

  constructor(path: string, url: URL) {
    this.#path = path;
    this.#partial = partial_path(path, `${file_host()}-${process.pid}`);
    this.#url = url;
  }

  /** Resumes an earlier download. */
  async resume(): Promise<void> {
    for (const left of await abandoned_partials(this.#path)) {
      const meta = await read_meta(`${left}.json`);
      if (meta?.url !== url_for_meta(this.#url) || !meta.etag) continue;
      if (!(await take_over(left, this.#partial))) continue;
      await rm(`${left}.json`, { force: true });
      this.size = (await stat(this.#partial)).size;
      this.#version = { etag: meta.etag, last_modified: meta.last_modified };
      this.etag = meta.etag;
      return this.#guard(() => this.#describe());
    }
  }

  async restart(version: FileVersion, resumable: boolean): Promise<void> {
    await this.#guard(async () => {
      await this.#handle?.close();
      this.#handle = await open(this.#partial, "w");
      this.#version = version;
      this.size = 0;
      this.etag = resumable ? version.etag : undefined;
      await this.#describe();
    });
  }

  async expect(size: number | undefined): Promise<void> {
    this.#check_room_at = size === undefined ? this.size + ROOM_STEP_BYTES : Number.POSITIVE_INFINITY;
    if (size !== undefined) await this.#check_room(size - this.size);
  }

  async #check_room(bytes: number): Promise<void> {
    const free = await free_bytes(dirname(this.#path));
    if (bytes <= free) return;
    throw new VitMsnError(
      "IO",
      `${dirname(this.#path)} has no room for the download: it needs ${bytes} more bytes, but ${free} are free. ` +
        "Make room, or set cache_dir to a folder on another disk.",
      { details: { file: this.#path, needed: bytes, free } },
    );
  }

  async append(bytes: Uint8Array): Promise<void> {
    await this.#guard(async () => {
      this.#handle ??= await open(this.#partial, "r+");
      for (let done = 0; done < bytes.byteLength; ) {
        const { bytesWritten } = await this.#handle.write(bytes, done, bytes.byteLength - done, this.size);
        done += bytesWritten;
        this.size += bytesWritten;
      }
    });
    if (this.size < this.#check_room_at) return;
    this.#check_room_at = this.size + ROOM_STEP_BYTES;
    await this.#check_room(ROOM_BYTES);
  }

  async *chunks(): AsyncGenerator<Uint8Array> {
    try {
      yield* createReadStream(this.#partial, { highWaterMark: HASHED_BYTES });
    } catch (error) {
      throw io_error(`${this.#partial} can't be read`, error);
    }
  }

  async commit(): Promise<RandomAccessFile> {
    return this.#guard(async () => {
      this.#handle ??= await open(this.#partial, "r+");
      await this.#handle.datasync();
      await this.#handle.close();
      this.#handle = undefined;
      await rename(this.#partial, this.#path);
      this.size = 0;
      const { size } = await stat(this.#path);
      await write_meta(`${this.#path}.meta.json`, {
        ...this.#version,
        url: url_for_meta(this.#url),
        size,
        missing: false,
      });
      await Promise.all((await abandoned_partials(this.#path)).map(remove_partial));
      return disk_file(this.#path, await open(this.#path, constants.O_RDONLY));
    });
  }

  async close(): Promise<void> {
    await this.#handle?.close();
    this.#handle = undefined;
    // If a part can't be stored, the next download merely resumes from less.
    if (this.size > 0 && this.etag !== undefined) await this.#set_free().catch(() => {});
    await remove_partial(this.#partial);
  }

  async #set_free(): Promise<void> {
    const free = partial_path(this.#path, FREE);
    await this.#describe(free);
    await rename(this.#partial, free);
  }

  /** Records the version next to the bytes, so that a later process can resume. */
  async #describe(partial = this.#partial): Promise<void> {
    if (this.etag === undefined) await rm(`${partial}.json`, { force: true });
    else
      await write_meta(`${partial}.json`, {
        ...this.#version,
        url: url_for_meta(this.#url),
        size: 0,
        missing: false,
      });
  }

  async #guard<T>(action: () => Promise<T>): Promise<T> {
    try {
      return await action();
    } catch (error) {
      throw io_error(`${this.#path} can't be written`, error);
    }
  }
}

/** Free bytes for this user on a folder's disk; Infinity if the system doesn't report them. */
async function free_bytes(folder: string): Promise<number> {
  try {
    const { blocks, bavail, bsize } = await statfs(folder);
    // Some network disks report no size at all.
    return blocks > 0 ? bavail * bsize : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

function partial_path(path: string, owner: string): string {
  return `${path}.${owner}.${randomUUID()}.incomplete`;
}

/** Partial downloads of `path` that no process is working on. */
async function abandoned_partials(path: string): Promise<string[]> {
  const names = await readdir(dirname(path)).catch(() => []);
  const paths = names
    .filter((name) => name.startsWith(`${basename(path)}.`) && name.endsWith(".incomplete"))
    .map((name) => join(dirname(path), name));
  const abandoned = await Promise.all(
    paths.map((partial) => is_abandoned(partial, partial.slice(path.length + 1))),
  );
  return paths.filter((_, i) => abandoned[i]);
}

async function is_abandoned(partial: string, suffix: string): Promise<boolean> {
  const owner = suffix.split(".")[0] as string;
  const [host, pid] = owner.split("-");
  if (owner === FREE || (host === file_host() && !is_alive(Number(pid)))) return true;
  const info = await stat(partial).catch(() => undefined);
  return info !== undefined && Date.now() - info.mtimeMs > ABANDONED_MS;
}

/** false if another process was faster. */
async function take_over(left: string, partial: string): Promise<boolean> {
  const now = new Date();
  try {
    // Its time is renewed first, so that no other process considers it abandoned.
    await utimes(left, now, now);
    await rename(left, partial);
    return true;
  } catch {
    return false;
  }
}

/** This machine's name, as it appears in the name of a partial file. */
function file_host(): string {
  return host_name().replace(/\W/g, "_").slice(0, 40);
}

async function remove_partial(partial: string): Promise<void> {
  await rm(partial, { force: true });
  await rm(`${partial}.json`, { force: true });
}
