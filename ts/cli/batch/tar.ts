import type { FileHandle } from "node:fs/promises";
import { dirname, join, normalize } from "node:path/posix";
import type { ReadableStream } from "node:stream/web";
import {
  type ByteSource,
  DamagedArchive,
  is_hidden_member,
  SkippedFiles,
  type TarMember,
  tar_members,
} from "../../files/index.ts";
import { status_error } from "../../image/index.ts";
import { fetch_url, is_image_name, show_url, VitMsnError } from "../../index.ts";
import { unsupported_content } from "./archives.ts";
import { aborted, file_error } from "./errors.ts";
import { gunzip } from "./gunzip.ts";
import { type ListedImage, unreadable } from "./listed_image.ts";
import { type ArchiveReading, image_of, not_read, read_member, short_member } from "./members.ts";
import { open_regular } from "./regular_file.ts";
import { type DownloadSettings, is_transient, network_error, with_retries } from "./remote.ts";

/** The bytes needed to recognise a format. */
const MAGIC_BYTES = 8;
/** Bytes per read of a file: the minimum after a seek to a header, then twice as many each time. */
const MIN_PIECE = 4096;
const MAX_PIECE = 256 * 1024;

/** An archive that is open. */
interface OpenShard {
  source: ByteSource;
  close(): Promise<void>;
}

/** The images in a tar shard, member by member: one image is in memory at a time. */
export async function* tar_images(path: string, reading: ArchiveReading): AsyncGenerator<ListedImage> {
  const { signal } = reading;
  try {
    yield* members(path, () => open_file(path, signal), reading);
  } catch (error) {
    if (signal.aborted) throw aborted(signal);
    if (error instanceof VitMsnError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw code === undefined || code.startsWith("Z_") ? damaged_shard(path, error) : file_error(error, path);
  }
}

async function open_file(path: string, signal: AbortSignal): Promise<OpenShard> {
  const { handle, size } = await open_regular(path, "a tar shard");
  return { source: new FileBytes(handle, size, signal), close: () => handle.close() };
}

/** A file's bytes, from its start. */
class FileBytes implements ByteSource {
  readonly #file: FileHandle;
  readonly #size: number;
  readonly #signal: AbortSignal;
  #position = 0;
  #piece = MAX_PIECE;

  constructor(file: FileHandle, size: number, signal: AbortSignal) {
    this.#file = file;
    this.#size = size;
    this.#signal = signal;
  }

  async next(): Promise<IteratorResult<Uint8Array>> {
    this.#signal.throwIfAborted();
    const { bytesRead, buffer } = await this.#file.read(
      Buffer.allocUnsafe(this.#piece),
      0,
      this.#piece,
      this.#position,
    );
    this.#position += bytesRead;
    this.#piece = Math.min(2 * this.#piece, MAX_PIECE);
    return bytesRead === 0 ? { done: true, value: undefined } : { value: buffer.subarray(0, bytesRead) };
  }

  async skip(count: number): Promise<number> {
    const skipped = Math.min(count, Math.max(this.#size - this.#position, 0));
    this.#position += skipped;
    if (skipped > 0) this.#piece = MIN_PIECE;
    return skipped;
  }
}

/**
 * The images in a tar shard at a URL. A stream that breaks off is requested again, and what was already read is skipped.
 *
 * @throws VitMsnError NETWORK when no retry is left, since the number of missing images would be unknown.
 */
export async function* remote_tar_images(
  url: string,
  download: DownloadSettings,
  { signal, skipped, is_wanted }: ArchiveReading,
): AsyncGenerator<ListedImage> {
  const name = show_url(url);
  let done = 0;
  for (let failures = 0; ; failures++) {
    const done_before = done;
    try {
      const open = () => with_retries(download, signal, () => open_remote(url, name, download, signal));
      let position = 0;
      const skipped_now = new SkippedFiles();
      const reading = {
        signal,
        skipped: skipped_now,
        is_wanted: () => position >= done && is_wanted(),
      };
      for await (const image of members(name, open, reading)) {
        if (position++ < done) continue;
        yield image;
        done = position;
      }
      skipped.add_all(skipped_now);
      return;
    } catch (error) {
      if (signal.aborted) throw aborted(signal);
      if (is_damage(error)) throw damaged_shard(name, error);
      if (done > done_before) failures = 0;
      if (error instanceof VitMsnError && !is_transient(error)) throw error;
      if (failures >= download.retries) throw network_error(name, (error as Error).message, error);
    }
  }
}

async function open_remote(
  url: string,
  name: string,
  { timeout_ms, headers }: DownloadSettings,
  signal: AbortSignal,
): Promise<OpenShard> {
  const silence = new AbortController();
  const give_up = () => silence.abort(silent_for(timeout_ms));
  const timer = setTimeout(give_up, timeout_ms);
  try {
    const response = await fetch_url(url, { headers, signal: AbortSignal.any([signal, silence.signal]) });
    if (!response.ok || response.body === null) {
      await response.body?.cancel();
      throw status_error(name, response);
    }
    const source = until_silent(response.body, silence, timeout_ms);
    return {
      source,
      close: () => source.return().then(() => {}),
    };
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    throw network_error(name, (cause as Error).message, cause);
  } finally {
    clearTimeout(timer);
  }
}

function silent_for(timeout_ms: number): Error {
  return new Error(`nothing arrived for ${timeout_ms / 1000} s`);
}

/** Ends a stream whose server falls silent; the time that the reader takes doesn't count. */
async function* until_silent(
  body: ReadableStream<Uint8Array> | globalThis.ReadableStream<Uint8Array>,
  silence: AbortController,
  timeout_ms: number,
): AsyncGenerator<Uint8Array, void, void> {
  const give_up = () => silence.abort(silent_for(timeout_ms));
  let timer = setTimeout(give_up, timeout_ms);
  try {
    for await (const chunk of body as ReadableStream<Uint8Array>) {
      clearTimeout(timer);
      yield chunk;
      timer = setTimeout(give_up, timeout_ms);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** A member that is a link. */
interface Link {
  name: string;
  target: string;
}

/**
 * The images of a shard, in order. Links come last, in the order of their targets: these are read in a second pass, since only
 * one member is in memory at a time.
 */
async function* members(
  shard: string,
  open: () => Promise<OpenShard>,
  { skipped, is_wanted }: ArchiveReading,
): AsyncGenerator<ListedImage> {
  const links: Link[] = [];
  for await (const member of opened(shard, open)) {
    const { name, kind, target } = member;
    if (kind === "folder" || is_hidden_member(name)) continue;
    const is_link = (kind === "hard link" || kind === "symbolic link") && target !== "";
    if (!is_image_name(name)) skipped.add(name);
    else if (kind !== "file" && !is_link) skipped.count("members of shards that aren't files");
    else if (kind === "file") yield await image_of(`${shard}/${short_member(name)}`, member, is_wanted);
    else
      links.push({
        name,
        target: kind === "hard link" ? normalize(target) : normalize(join(dirname(name), target)),
      });
  }
  if (links.length > 0) yield* linked(shard, links, open, is_wanted);
}

async function* linked(
  shard: string,
  links: readonly Link[],
  open: () => Promise<OpenShard>,
  is_wanted: () => boolean,
): AsyncGenerator<ListedImage> {
  const targets = new Map(links.map(({ name, target }) => [normalize(name), target]));
  const wanted = new Map<string, string[]>();
  for (const { name, target } of links) {
    const end = end_of_chain(target, targets);
    wanted.set(end, [...(wanted.get(end) ?? []), name]);
  }
  for await (const member of opened(shard, open)) {
    const names = member.kind === "file" ? wanted.get(normalize(member.name)) : undefined;
    if (names === undefined) continue;
    wanted.delete(normalize(member.name));
    let image: ListedImage | undefined;
    for (const name of names) {
      if (is_wanted()) image ??= await read_member(`${shard}/${short_member(member.name)}`, member);
      yield { name: `${shard}/${short_member(name)}`, read: image?.read ?? not_read };
    }
  }
  for (const [target, names] of wanted) {
    for (const name of names) {
      const message = `${shard}/${short_member(name)} is a link to ${short_member(target)}, which isn't in the shard.`;
      yield unreadable(
        `${shard}/${short_member(name)}`,
        new VitMsnError("NOT_FOUND", message, { details: { file: name } }),
      );
    }
  }
}

/** The member that a link leads to through other links. */
function end_of_chain(target: string, targets: ReadonlyMap<string, string>): string {
  let end = target;
  for (let steps = targets.size; steps > 0 && targets.has(end); steps--) end = targets.get(end) as string;
  return end;
}

async function* opened(shard: string, open: () => Promise<OpenShard>): AsyncGenerator<TarMember> {
  const { source, close } = await open();
  try {
    yield* tar_members(await unpacked(shard, source));
  } finally {
    await close();
  }
}

/** A shard's decompressed bytes; its first bytes show whether it is compressed, whatever its name. */
async function unpacked(shard: string, source: ByteSource): Promise<ByteSource> {
  let start: Uint8Array = new Uint8Array();
  while (start.length < MAGIC_BYTES) {
    const { done, value } = await source.next();
    if (done) break;
    start = Buffer.concat([start, value as Uint8Array]);
  }
  const other = unsupported_content(shard, start);
  if (other !== undefined) throw other;
  const first = [start];
  const next = async () => {
    const value = first.pop();
    return value === undefined ? source.next() : { value };
  };
  if (start[0] === 0x1f && start[1] === 0x8b)
    return gunzip({ [Symbol.asyncIterator]: () => ({ next }) as AsyncIterator<Uint8Array> });
  // A reader skips only once it has taken the first bytes.
  return source.skip ? { next, skip: source.skip.bind(source) } : { next };
}

/** Whether the bytes aren't a valid archive, as opposed to a stream that ends too early. */
function is_damage(error: unknown): boolean {
  return error instanceof DamagedArchive
    ? !error.is_cut
    : (error as NodeJS.ErrnoException).code === "Z_DATA_ERROR";
}

function damaged_shard(name: string, cause: unknown): VitMsnError {
  const reason = (cause as Error).message.replace(/[?.]+$/, "");
  return new VitMsnError(
    "INVALID_IMAGE",
    `${name} can't be read completely as a tar shard: ${reason}. Download or copy it again.`,
    { cause, details: { file: name } },
  );
}
