import { offline_variable } from "#environment";
import { download_store, fetch_is_unrestricted, sha256_of } from "#storage";
import { env } from "../env.ts";
import { type ErrorCode, throw_if_aborted, VitMsnError } from "../errors.ts";
import { show_url } from "../network/show_url.ts";
import { sleep } from "../sleep.ts";
import { looks_like_page } from "./bytes.ts";
import {
  type FileVersion,
  memory_store,
  type Store,
  type StoredCopy,
  type StoreWriter,
} from "./download_store.ts";
import type { Progress } from "./progress.ts";
import { type Answer, network_error, request, TransientError } from "./request.ts";
import type { LoadOptions, RandomAccessFile } from "./types.ts";

export interface RemoteOptions {
  /** Whether the URL names a commit, so that a downloaded file never changes. */
  immutable: boolean;
  progress: Progress;
  options: LoadOptions;
  /** Max bytes of the file; default MAX_FILE_BYTES. */
  max_bytes?: number;
  /** The Authorization header of a base URL's own user and password. */
  authorization?: string;
}

const MAX_TRIES = 4;
/** A file with a wrong hash is downloaded once more, because the resumed part may have been damaged. */
const MAX_DAMAGED = 2;
const FIRST_WAIT_MS = 250;
/** If a server asks for a longer wait, there is no retry. */
const MAX_WAIT_MS = 60_000;
/** An attempt with at least this much progress doesn't count, so that large files arrive over weak connections. */
const GOOD_TRY_BYTES = 1024 * 1024;
const HEAD_BYTES = 256;
/** No model that fits into memory has a larger file. */
const MAX_FILE_BYTES = 16 * 2 ** 30;
/** How long a server may take to report whether a cached copy is current. */
const CHECK_MS = 10_000;

/**
 * Opens a file of a server: the cached copy if it is current or the server can't be reached, else a new download.
 * undefined if the server reports that the file doesn't exist.
 */
export async function open_remote(url: URL, remote: RemoteOptions): Promise<RandomAccessFile | undefined> {
  const store = env.use_cache
    ? await download_store(url, remote.options.cache_dir)
    : memory_store(show_url(url));
  const copy = await store.find();
  if (!(await must_download(url, store, copy, remote))) return copy?.missing ? undefined : store.open();
  return download(url, store, remote);
}

/** false if the cached copy suffices. Throws OFFLINE if nothing is cached and the network may not be used. */
async function must_download(
  url: URL,
  store: Store,
  copy: StoredCopy | undefined,
  remote: RemoteOptions,
): Promise<boolean> {
  const { local_files_only } = remote.options;
  if (local_files_only || !env.allow_remote_models) {
    if (copy) return false;
    const why = local_files_only
      ? "local_files_only is set"
      : `env.allow_remote_models is false${offline_variable === undefined ? "" : ` (${offline_variable} is set)`}`;
    throw new VitMsnError(
      "OFFLINE",
      `${show_url(url)} isn't in the download cache (${store.place}), and ${why}. Load the model once while online.`,
      { details: { url: show_url(url), place: store.place } },
    );
  }
  if (!copy) return true;
  return !remote.immutable && !(await is_current(url, copy, remote));
}

/**
 * Requests one byte for the version in its headers: unlike HEAD and If-None-Match, every host and browser allows it.
 */
async function is_current(url: URL, copy: StoredCopy, remote: RemoteOptions): Promise<boolean> {
  const { options, authorization } = remote;
  try {
    const headers = { range: "bytes=0-0" };
    const answer = await request(url, { ...options, authorization, headers, silence_ms: CHECK_MS });
    answer.cancel();
    if (answer.status === 404 || answer.status === 410) return copy.missing;
    return !copy.missing && same_version(copy, version_of(answer)) && same_size(copy, answer);
  } catch (error) {
    // While the server can't be reached, the copy is the best available.
    if (error instanceof TransientError) return true;
    throw error;
  }
}

function same_version(a: FileVersion, b: FileVersion): boolean {
  if (a.etag !== undefined && b.etag !== undefined) return plain_etag(a.etag) === plain_etag(b.etag);
  return a.last_modified !== undefined && a.last_modified === b.last_modified;
}

function same_size(copy: StoredCopy, answer: Answer): boolean {
  const range = content_range(answer);
  return range?.total === undefined || range.total === copy.size;
}

/** Servers mark a version as weak when they compress it. */
function plain_etag(etag: string): string {
  return etag.replace(/^W\//, "");
}

function version_of(answer: Answer): FileVersion {
  return {
    etag: answer.headers.get("etag") ?? undefined,
    last_modified: answer.headers.get("last-modified") ?? undefined,
  };
}

/** Downloads into the store, with retries that resume if the server allows it. */
async function download(
  url: URL,
  store: Store,
  remote: RemoteOptions,
): Promise<RandomAccessFile | undefined> {
  const writer = await store.write();
  try {
    const found = await download_sound(url, writer, remote);
    if (found) return await writer.commit();
    await store.mark_missing();
    return undefined;
  } finally {
    await writer.close();
  }
}

/** Downloads until the bytes have the hash that the server announced. false: the file doesn't exist. */
async function download_sound(url: URL, writer: StoreWriter, remote: RemoteOptions): Promise<boolean> {
  for (let tries = 1; ; tries++) {
    const answer = await try_often(url, writer, remote);
    if (!answer) return false;
    const actual = await held_sha256(url, answer, writer, remote);
    if (actual === answer.sha256) return true;
    await writer.restart({}, false);
    if (tries >= MAX_DAMAGED) throw damaged(url, actual, answer.sha256);
  }
}

/** The hash of the bytes that arrived. If there is none to compare with or it can't be computed, the announced one. */
async function held_sha256(
  url: URL,
  { sha256 }: Answer,
  writer: StoreWriter,
  { options }: RemoteOptions,
): Promise<string | undefined> {
  if (sha256 === undefined || !sha256_of || !writer.chunks) return sha256;
  return sha256_of(writer.chunks(), () =>
    throw_if_aborted(options.signal, `The download of ${show_url(url)}`),
  );
}

function damaged(url: URL, actual: string | undefined, expected: string | undefined): VitMsnError {
  return new VitMsnError(
    "NETWORK",
    `${show_url(url)} arrived damaged: its SHA-256 is ${actual}, but the server announced ${expected}. Nothing was cached. Try again; ` +
      "if it happens again, a proxy or mirror is changing the file.",
    { details: { url: show_url(url), sha256: actual, expected_sha256: expected } },
  );
}

/** The last answer, which was read to its end; undefined if the file doesn't exist. */
async function try_often(url: URL, writer: StoreWriter, remote: RemoteOptions): Promise<Answer | undefined> {
  for (let tries = 1; ; tries++) {
    const before = writer.size;
    try {
      return await transfer(url, writer, remote);
    } catch (error) {
      if (!(error instanceof TransientError)) throw error;
      if (writer.size >= before + GOOD_TRY_BYTES) tries = 1;
      const wait = error.retry_after_ms ?? FIRST_WAIT_MS * 2 ** (tries - 1);
      if (tries >= MAX_TRIES || wait > MAX_WAIT_MS) throw error.final;
      const { signal } = remote.options;
      await sleep(wait * (1 + Math.random() / 4), signal);
      throw_if_aborted(signal, `The download of ${show_url(url)}`);
    }
  }
}

/** One request for the missing bytes; undefined if the file doesn't exist. */
async function transfer(url: URL, writer: StoreWriter, remote: RemoteOptions): Promise<Answer | undefined> {
  const resumes = writer.size > 0 && writer.etag !== undefined;
  const { options, authorization } = remote;
  const headers = resumes ? resume_headers(writer) : {};
  const answer = await request(url, { ...options, authorization, headers });
  try {
    if (answer.status === 404 || answer.status === 410) return undefined;
    const goes_on = resumes && continues(answer, writer);
    if (!goes_on && answer.status !== 200) {
      if (!resumes)
        throw network_error(url, `answers with status ${answer.status} to a plain request`, answer.status);
      // The stored part belongs to another version, or the server can't resume: request the whole file.
      await writer.restart({}, false);
      return await transfer(url, writer, remote);
    }
    if (!goes_on) await writer.restart(version_of(answer), is_resumable(answer));
    await receive(url, answer, writer, remote);
    return answer;
  } finally {
    answer.cancel();
  }
}

/** A browser needs the host's permission to send If-Range, so there only the answer's ETag decides. */
function resume_headers(writer: StoreWriter): Record<string, string> {
  const range = { range: `bytes=${writer.size}-` };
  return fetch_is_unrestricted ? { ...range, "if-range": writer.etag as string } : range;
}

function continues(answer: Answer, writer: StoreWriter): boolean {
  const starts_there = answer.status === 206 && content_range(answer)?.start === writer.size;
  return starts_there && version_of(answer).etag === writer.etag && !is_encoded(answer);
}

/** Only a strong ETag guarantees the same bytes. */
function is_resumable(answer: Answer): boolean {
  const { etag } = version_of(answer);
  return etag !== undefined && !etag.startsWith("W/") && !is_encoded(answer);
}

function is_encoded(answer: Answer): boolean {
  const encoding = answer.headers.get("content-encoding");
  return encoding !== null && encoding !== "" && encoding !== "identity";
}

async function receive(url: URL, answer: Answer, writer: StoreWriter, remote: RemoteOptions): Promise<void> {
  const total = total_size(answer, writer.size);
  const is_sure = answer.headers_visible && !is_encoded(answer);
  const size = is_sure ? total : undefined;
  const max_bytes = Math.min(remote.max_bytes ?? MAX_FILE_BYTES, answer.size ?? MAX_FILE_BYTES);
  const code = remote.max_bytes === undefined ? "INVALID_CHECKPOINT" : "INVALID_CONFIG";
  let head = writer.size === 0 ? new Uint8Array(0) : undefined;
  try {
    check_size(url, size ?? 0, max_bytes, code);
    await writer.expect?.(size);
    for await (const chunk of answer.chunks()) {
      if (head && head.byteLength < HEAD_BYTES) {
        head = new Uint8Array([...head, ...chunk.subarray(0, HEAD_BYTES)]);
        refuse_page(url, head, answer);
      }
      // Headers may be wrong, and decoded data may be far longer than what was sent.
      check_size(url, writer.size + chunk.byteLength, max_bytes, code);
      await writer.append(chunk);
      remote.progress.update(writer.size, total ?? 0);
    }
  } catch (error) {
    // No part of a refused file is stored.
    if (error instanceof VitMsnError && error.code !== "ABORTED") await writer.restart({}, false);
    throw error;
  }
  if (size !== undefined && writer.size !== size) {
    throw new TransientError(network_error(url, `sent ${writer.size} of ${size} bytes`));
  }
}

function check_size(url: URL, size: number, max_bytes: number, code: ErrorCode): void {
  if (size <= max_bytes) return;
  const message = `${show_url(url)} has more than the limit of ${max_bytes} bytes.`;
  throw new VitMsnError(code, message, { details: { url: show_url(url), max_bytes } });
}

/** Servers of single-page applications answer every address with their page. */
function refuse_page(url: URL, head: Uint8Array, answer: Answer): void {
  const is_html = answer.headers.get("content-type")?.startsWith("text/html") ?? false;
  if (!looks_like_page(head) && !(is_html && head[0] === 0x3c)) return;
  throw new VitMsnError(
    "NOT_FOUND",
    `${show_url(url)} is a web page, not a file of the model: the server probably lacks that file and answers ` +
      "with a page. Check the address.",
    { details: { url: show_url(url), content_type: answer.headers.get("content-type") } },
  );
}

/** Size of the whole file once this answer is read to its end. */
function total_size(answer: Answer, before: number): number | undefined {
  const length = answer.headers.get("content-length");
  return content_range(answer)?.total ?? (length === null ? undefined : before + Number(length));
}

function content_range(answer: Answer): { start: number; total?: number } | undefined {
  const match = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(answer.headers.get("content-range") ?? "");
  if (!match) return undefined;
  return { start: Number(match[1]), total: match[2] === "*" ? undefined : Number(match[2]) };
}
