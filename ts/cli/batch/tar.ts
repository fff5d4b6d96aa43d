import { createReadStream } from "node:fs";
import { pipeline, Readable } from "node:stream";
import type { ReadableStream } from "node:stream/web";
import { createGunzip } from "node:zlib";
import { type Extract, extract } from "tar-stream";
import { fetch_url, RawImage, show_url, VitMsnError } from "../../index.ts";
import { aborted, file_error } from "./errors.ts";
import { failing, type Picture } from "./picture.ts";
import { may_mend, network_error, type Patience, status_error, with_retries } from "./remote.ts";
import { is_picture_name } from "./walk.ts";

type Entry = Extract extends AsyncIterable<infer E> ? E : never;

/** The most bytes of one picture, as the library reads from a file. A larger member is refused without keeping it. */
const MAX_BYTES = 256 * 1024 * 1024;

/** The pictures inside a tar shard, which is read as a stream: one picture is in memory at a time. */
export async function* tar_pictures(path: string, signal: AbortSignal): AsyncGenerator<Picture> {
  try {
    yield* members(path, createReadStream(path, { signal, highWaterMark: 256 * 1024 }));
  } catch (error) {
    if (signal.aborted) throw aborted(signal);
    const { code } = error as NodeJS.ErrnoException;
    throw code === undefined || code.startsWith("Z_") ? unsound(path, error) : file_error(error, path);
  }
}

/**
 * The same of a URL. A stream that breaks off is asked for again, and what was already read of it is passed over.
 *
 * @throws VitMsnError NETWORK when no try is left: how many pictures would be missing, nobody could tell.
 */
export async function* remote_tar_pictures(
  url: string,
  patience: Patience,
  signal: AbortSignal,
): AsyncGenerator<Picture> {
  const name = show_url(url);
  let done = 0;
  for (let failures = 0; ; failures++) {
    const done_before = done;
    try {
      const body = await with_retries(patience, signal, () => open_remote(url, name, patience, signal));
      let position = 0;
      for await (const picture of members(name, body)) {
        if (position++ < done) continue;
        yield picture;
        done = position;
      }
      return;
    } catch (error) {
      if (signal.aborted) throw aborted(signal);
      if (is_damage(error)) throw unsound(name, error);
      if (done > done_before) failures = 0;
      if (error instanceof VitMsnError && !may_mend(error)) throw error;
      if (failures >= patience.retries) throw network_error(name, (error as Error).message, error);
    }
  }
}

async function open_remote(
  url: string,
  name: string,
  { timeout_ms, headers }: Patience,
  signal: AbortSignal,
): Promise<Readable> {
  const silence = new AbortController();
  const give_up = () => silence.abort(new Error(`nothing arrived for ${timeout_ms / 1000} s`));
  const timer = setTimeout(give_up, timeout_ms);
  try {
    const response = await fetch_url(url, { headers, signal: AbortSignal.any([signal, silence.signal]) });
    if (!response.ok || response.body === null) {
      await response.body?.cancel();
      throw status_error(name, response);
    }
    return Readable.from(watched(response.body, silence, timeout_ms), { objectMode: false });
  } catch (cause) {
    if (cause instanceof VitMsnError) throw cause;
    throw network_error(name, (cause as Error).message, cause);
  } finally {
    clearTimeout(timer);
  }
}

/** Ends a stream whose server falls silent; the time that the reader takes doesn't count. */
async function* watched(
  body: ReadableStream<Uint8Array> | globalThis.ReadableStream<Uint8Array>,
  silence: AbortController,
  timeout_ms: number,
): AsyncGenerator<Uint8Array> {
  const give_up = () => silence.abort(new Error(`nothing arrived for ${timeout_ms / 1000} s`));
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

async function* members(shard: string, source: Readable): AsyncGenerator<Picture> {
  const tar = extract();
  // What fails on the way ends the loop below with the same error.
  if (/gz$/i.test(shard)) pipeline(source, createGunzip(), tar, () => {});
  else pipeline(source, tar, () => {});
  try {
    for await (const entry of tar) {
      const { name, type } = entry.header;
      const is_file = type === "file" || type === "contiguous-file";
      if (is_file && is_picture_name(name)) yield await read_member(`${shard}/${name}`, entry);
      entry.resume();
    }
  } finally {
    source.destroy();
  }
}

/** A picture of a shard that streams by, so its bytes are read whether it is wanted or not. */
async function read_member(name: string, entry: Entry): Promise<Picture> {
  const { size } = entry.header;
  if (size > MAX_BYTES) {
    const message = `${name} has ${size} bytes, more than the limit of ${MAX_BYTES} for one picture.`;
    return failing(name, new VitMsnError("INVALID_IMAGE", message, { details: { file: name } }));
  }
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  for await (const chunk of entry) chunks.push(chunk as Uint8Array<ArrayBuffer>);
  return { name, read: () => RawImage.read(new File(chunks, name)) };
}

/** tar-stream's and zlib's words for bytes that are no archive, as against a stream that ends too early. */
function is_damage(error: unknown): boolean {
  const { message = "", code } = error as NodeJS.ErrnoException;
  return code === "Z_DATA_ERROR" || message.startsWith("Invalid tar");
}

function unsound(name: string, cause: unknown): VitMsnError {
  const reason = (cause as Error).message.replace(/[?.]+$/, "");
  return new VitMsnError(
    "INVALID_IMAGE",
    `${name} can't be read to its end as a tar shard: ${reason}. Download or copy it again.`,
    { cause, details: { file: name } },
  );
}
