import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { save_files } from "#save";
import { env } from "../../ts/env.ts";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { write_safetensors } from "../../ts/loading/formats/write_safetensors.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import type { LoadOptions } from "../../ts/loading/types.ts";
import { hold_output_folder } from "../../ts/training/folders/folders.web.ts";
import { expect_error } from "../support/errors.ts";
import { skipped } from "../support/skips.ts";

const MIB = 1024 * 1024;
/** A whole part and a bit. */
const CONTENT = new Uint8Array(20 * MIB + 5).map((_, i) => (i * 7919) & 255);
const original = { ...env };
let requests: { url: string; headers: Headers }[];

/** Serves `content`; of the first answer only `first` bytes arrive before the connection breaks. */
function serve(
  content: Uint8Array<ArrayBuffer>,
  { etag = '"v1"', first = Number.POSITIVE_INFINITY } = {},
): void {
  env.fetch = async (input, init) => {
    const headers = new Headers(init?.headers);
    requests.push({ url: String(input), headers });
    const range = /^bytes=(\d+)-(\d*)$/.exec(headers.get("range") ?? "");
    const start = Number(range?.[1] ?? 0);
    const end = range?.[2] ? Number(range[2]) + 1 : content.byteLength;
    const about: Record<string, string> = { etag, "content-length": String(end - start) };
    if (range) about["content-range"] = `bytes ${start}-${end - 1}/${content.byteLength}`;
    const body = content.subarray(start, end);
    const breaks = requests.length === 1 && body.byteLength > first;
    return new Response(breaks ? broken_stream(body.subarray(0, first)) : body, {
      status: range ? 206 : 200,
      headers: about,
    });
  };
}

function broken_stream(bytes: Uint8Array): ReadableStream {
  let sent = 0;
  return new ReadableStream({
    pull(controller) {
      if (sent >= bytes.byteLength) return controller.error(new TypeError("network error"));
      controller.enqueue(bytes.slice(sent, sent + MIB));
      sent += MIB;
    },
  });
}

async function load(file = "weights.bin", options: LoadOptions = {}, source: string | URL = "org/name") {
  const opened = await (await open_source(source, options)).open(file);
  return opened?.read(0, opened.size);
}

/** Compares a byte in a thousand of large files: each byte of CONTENT follows from its place. */
function same(a: Uint8Array | undefined, b: Uint8Array): boolean {
  if (a?.byteLength !== b.byteLength) return false;
  const step = b.byteLength > MIB ? 997 : 1;
  for (let i = 0; i < b.byteLength; i += step) if (a[i] !== b[i]) return false;
  return true;
}

beforeEach(() => {
  requests = [];
  Object.assign(env, original, { cache_key: `test-${crypto.randomUUID()}` });
});
afterEach(async () => {
  vi.unstubAllGlobals();
  await caches.delete(env.cache_key);
  Object.assign(env, original);
});

describe("the Cache API", () => {
  test("caches a download in parts and reads it without the network", async () => {
    serve(CONTENT);
    expect(same(await load(), CONTENT)).toBe(true);
    expect(same(await load(), CONTENT)).toBe(true);
    expect(requests.map(({ headers }) => headers.get("range"))).toEqual([null, "bytes=0-0"]);
    env.allow_remote_models = false;
    expect(same(await load(), CONTENT)).toBe(true);
    expect(requests.length).toBe(2);
    await expect_error(load("other.bin"), "OFFLINE", /other\.bin isn't in the download cache \(the cache/);
  });

  test("reads any range across parts", async () => {
    serve(CONTENT);
    const opened = await (await open_source("org/name")).open("weights.bin");
    const bytes = await opened?.read(16 * MIB - 3, 6);
    expect(same(bytes, CONTENT.subarray(16 * MIB - 3, 16 * MIB + 3))).toBe(true);
    await expect_error(async () => opened?.read(20 * MIB, 6), "INVALID_CHECKPOINT", /ends early/);
  });

  test("resumes a download from the last whole part", async () => {
    serve(CONTENT, { first: 18 * MIB });
    expect(same(await load(), CONTENT)).toBe(true);
    expect(requests[1]?.headers.get("range")).toMatch(/^bytes=\d+-$/);
    expect(requests[1]?.headers.get("if-range")).toBeNull();
  });

  /** Leaves a download whose connection broke after 18 MiB and which was aborted then. */
  async function leave_partial(): Promise<void> {
    requests = [];
    serve(CONTENT, { first: 18 * MIB });
    const abort = new AbortController();
    const serving = env.fetch;
    env.fetch = (input, init) => {
      if (requests.length === 1) abort.abort();
      return serving(input, init);
    };
    await expect_error(load("weights.bin", { signal: abort.signal }), "ABORTED", /aborted/);
  }

  test("resumes after the page was closed", async () => {
    await leave_partial();
    serve(CONTENT);
    expect(same(await load(), CONTENT)).toBe(true);
    expect(requests.at(-1)?.headers.get("range")).toBe(`bytes=${16 * MIB}-`);
  });

  test("starts over where the version has changed", async () => {
    await leave_partial();
    const changed = CONTENT.map((byte) => byte ^ 255);
    serve(changed, { etag: '"v2"' });
    expect(same(await load(), changed)).toBe(true);
  });

  test("replaces a version that changed and deletes the old one", async () => {
    serve(CONTENT);
    await load();
    const small = new TextEncoder().encode("new");
    serve(small, { etag: '"v2"' });
    expect(same(await load(), small)).toBe(true);
    const keys = await (await caches.open(env.cache_key)).keys();
    expect(keys.length).toBe(2);
  });

  test("whose part was evicted loads again", async () => {
    serve(CONTENT);
    await load();
    const cache = await caches.open(env.cache_key);
    const part = (await cache.keys()).find(({ url }) => url.endsWith("-1"));
    await cache.delete(part as Request);
    expect(same(await load(), CONTENT)).toBe(true);
  });

  test("remembers what was missing", async () => {
    env.fetch = async () => new Response(null, { status: 404 });
    expect(await load()).toBeUndefined();
    expect(await load("weights.bin", { local_files_only: true })).toBeUndefined();
  });

  test("that is full is a warning", async () => {
    const warnings: string[] = [];
    env.warn = (message) => warnings.push(message);
    const full = new DOMException("full", "QuotaExceededError");
    const put = vi.spyOn(Cache.prototype, "put").mockRejectedValue(full);
    serve(CONTENT);
    expect(same(await load(), CONTENT)).toBe(true);
    put.mockRestore();
    expect(warnings.join()).toMatch(/weights\.bin isn't cached/);
    expect(await (await caches.open(env.cache_key)).keys()).toEqual([]);
  });

  test("that is absent is replaced by memory", async () => {
    vi.stubGlobal("caches", undefined);
    serve(CONTENT);
    expect(same(await load(), CONTENT)).toBe(true);
    expect(same(await load(), CONTENT)).toBe(true);
    expect(requests.length).toBe(2);
    vi.unstubAllGlobals();
  });

  test("stores nothing when env.use_cache is false", async () => {
    env.use_cache = false;
    serve(CONTENT);
    await load();
    expect(await caches.has(env.cache_key)).toBe(false);
  });
});

describe("addresses", () => {
  test("a path is relative to the page", async () => {
    const fixture = await open_source("/test/fixtures/tiny");
    expect(await read_json(fixture, "config.json")).toMatchObject({ hidden_size: 48 });
    const checkpoint = await open_checkpoint(fixture);
    expect(checkpoint.tensors.size).toBe(56);
    expect(fixture.name).toBe(`${location.origin}/test/fixtures/tiny/`);
  });

  test("a development server's page isn't taken for a file", async () => {
    await expect_error(
      open_checkpoint(await open_source("/no/such/model")),
      "NOT_FOUND",
      /no\/such\/model|holds no weights/,
    );
  });

  test("local folders aren't reachable", async () => {
    await expect_error(open_source("file:///models/x"), "INVALID_ARGUMENT", /can't be opened here/);
    await expect_error(open_source("C:\\models"), "INVALID_ARGUMENT", /can't be opened here/);
  });

  test("a picked folder's Files open", async () => {
    const config = new File(['{"a":1}'], "config.json");
    expect(await read_json(await open_source({ "model/config.json": config }), "config.json")).toEqual({
      a: 1,
    });
  });
});

describe("saving", async () => {
  test("writes into a directory handle", async () => {
    const root = await navigator.storage.getDirectory();
    const directory = await root.getDirectoryHandle(`test-${crypto.randomUUID()}`, { create: true });
    const weights = write_safetensors([
      { key: "a", dtype: "float32", dims: [2], byte_length: 8, bytes: new Uint8Array(8) },
    ]);
    await save_files(directory, { "config.json": "{}", "model.safetensors": weights });
    const file = await (await directory.getFileHandle("model.safetensors")).getFile();
    const checkpoint = await open_checkpoint(await open_source({ "model.safetensors": file }));
    expect(checkpoint.tensors.get("a")?.dims).toEqual([2]);
    const signal = AbortSignal.abort();
    await expect_error(save_files(directory, { "config.json": "new" }, { signal }), "ABORTED", /aborted/);
    expect(await (await (await directory.getFileHandle("config.json")).getFile()).text()).toBe("{}");
    await expect_error(save_files(directory, { "../x": "" }), "INVALID_ARGUMENT", /plain relative path/);
    await root.removeEntry(directory.name, { recursive: true });
  });

  const root = Object.prototype.toString.call(await navigator.storage.getDirectory());
  const no_files = skipped(
    root !== "[object FileSystemDirectoryHandle]",
    "there is no private file system here",
  );

  test.skipIf(no_files)("in a Worker of a browser without createWritable, as Safari before 26", async () => {
    const name = `test-${crypto.randomUUID()}`;
    const worker = new Worker(new URL("../support/save_worker.ts", import.meta.url), { type: "module" });
    const outcome = await new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage(name);
    });
    worker.terminate();
    expect(outcome).toEqual({
      code: "ABORTED",
      files: { "config.json": '{"a":2}', "weights.bin": "new weights" },
    });
  });

  test.skipIf(no_files)("is refused in a page of such a browser, before any work", async () => {
    const root = await navigator.storage.getDirectory();
    const { prototype } = FileSystemFileHandle;
    const method = Object.getOwnPropertyDescriptor(prototype, "createWritable") as PropertyDescriptor;
    Reflect.deleteProperty(prototype, "createWritable");
    const work = vi.fn(async () => {});
    try {
      await expect_error(save_files(root, { "config.json": "{}" }), "UNSUPPORTED", /in a Web Worker/);
      await expect_error(hold_output_folder(root, undefined, work), "UNSUPPORTED", /in a Web Worker/);
    } finally {
      Object.defineProperty(prototype, "createWritable", method);
    }
    expect(work).not.toHaveBeenCalled();
    await expect(root.getFileHandle("config.json")).rejects.toMatchObject({ name: "NotFoundError" });
  });

  test("into a path is an error that names what to pass instead", async () => {
    await expect_error(save_files("./model", { a: "" }), "INVALID_ARGUMENT", /FileSystemDirectoryHandle/);
  });
});
