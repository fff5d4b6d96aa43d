import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { env } from "../../ts/env.ts";
import { open_checkpoint } from "../../ts/loading/checkpoint.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import type { LoadOptions, ProgressInfo } from "../../ts/loading/types.ts";
import { ViTMSNConfig } from "../../ts/model/configuration_vit_msn.ts";
import { expect_error } from "../support/errors.ts";

type Handler = (request: IncomingMessage, response: ServerResponse, count: number) => void;

/** A server of 127.0.0.1 whose answers each test sets; every request is noted. */
class FakeHub {
  readonly requests: IncomingMessage[] = [];
  handler: Handler = (_, response) => void response.writeHead(404).end();
  private readonly server: Server;

  constructor() {
    this.server = createServer((request, response) => {
      this.requests.push(request);
      this.handler(request, response, this.requests.length);
    });
  }

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, "127.0.0.1", resolve));
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  header(index: number, name: string): string | undefined {
    return this.requests[index]?.headers[name] as string | undefined;
  }
}

const CONTENT = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => (i * 7919) & 255));
const JSON_TEXT = '{"hidden_size": 48}';
const original = { ...env };
let hub: FakeHub;
let cache_dir: string;

beforeEach(async () => {
  hub = new FakeHub();
  await hub.start();
  cache_dir = await mkdtemp(join(tmpdir(), "vit-msn-test-"));
  Object.assign(env, original, { remote_host: hub.origin });
  delete process.env.HF_TOKEN;
});

afterEach(async () => {
  await hub.stop();
  await rm(cache_dir, { recursive: true, force: true });
  Object.assign(env, original);
});

/** Serves `content` as a good server does: ETag, ranges, If-Range. */
function serve(content: Buffer, etag = '"v1"'): Handler {
  return (request, response) => {
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    const if_range = request.headers["if-range"];
    if (!range || (if_range !== undefined && if_range !== etag)) {
      response.writeHead(200, { etag, "content-length": content.byteLength }).end(content);
      return;
    }
    const start = Number(range[1]);
    const end = Math.min(range[2] ? Number(range[2]) : Number.POSITIVE_INFINITY, content.byteLength - 1);
    if (start >= content.byteLength) {
      response.writeHead(416, { "content-range": `bytes */${content.byteLength}` }).end();
      return;
    }
    const headers = {
      etag,
      "content-length": end - start + 1,
      "content-range": `bytes ${start}-${end}/${content.byteLength}`,
    };
    response.writeHead(206, headers).end(content.subarray(start, end + 1));
  };
}

/** Sends the first `length` bytes and breaks the connection, once they are stored: what the client hasn't read is lost with it. */
async function break_off(
  response: ServerResponse,
  length: number,
  headers: Record<string, string | number>,
): Promise<void> {
  response.writeHead(200, { "content-length": CONTENT.byteLength, ...headers });
  response.write(CONTENT.subarray(0, length));
  while (!response.destroyed && (await incomplete_bytes()) < length)
    await new Promise((resolve) => setTimeout(resolve, 5));
  response.destroy();
}

/** How much of files is stored whose downloads are under way. */
async function incomplete_bytes(): Promise<number> {
  const names = (await readdir(cache_dir, { recursive: true })).filter((name) =>
    name.endsWith(".incomplete"),
  );
  // A name may be gone by now.
  const sizes = names.map((name) =>
    stat(join(cache_dir, name)).then(
      ({ size }) => size,
      () => 0,
    ),
  );
  return Math.max(0, ...(await Promise.all(sizes)));
}

async function load(
  file = "weights.bin",
  options: LoadOptions = {},
  source: string | URL = "org/name",
): Promise<Buffer | undefined> {
  const opened = await (await open_source(source, { cache_dir, ...options })).open(file);
  if (!opened) return undefined;
  const bytes = Buffer.from(await opened.read(0, opened.size));
  await opened.close();
  return bytes;
}

async function cached_files(): Promise<string[]> {
  const entries = await readdir(cache_dir, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map(({ name }) => name)
    .sort();
}

describe("a hub repository", () => {
  test("is requested at the hub's address, cached, and read from disk", async () => {
    hub.handler = serve(CONTENT);
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(hub.requests[0]?.url).toBe("/org/name/resolve/main/weights.bin");
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });

  test("takes revision and subfolder into its address", async () => {
    hub.handler = serve(CONTENT);
    await load("a b.bin", { revision: "refs/pr/5", subfolder: "small/v2" }, "name");
    expect(hub.requests[0]?.url).toBe("/name/resolve/refs%2Fpr%2F5/small/v2/a%20b.bin");
  });

  test("is only asked for its version once it is cached", async () => {
    hub.handler = serve(CONTENT);
    await load();
    await load();
    expect(hub.requests.length).toBe(2);
    expect(hub.header(1, "range")).toBe("bytes=0-0");
  });

  test("is loaded again when it changed", async () => {
    hub.handler = serve(CONTENT);
    await load();
    hub.handler = serve(Buffer.from("new"), '"v2"');
    expect((await load())?.toString()).toBe("new");
  });

  test("isn't asked at all for a commit that is cached", async () => {
    hub.handler = serve(CONTENT);
    const revision = "0123456789abcdef0123456789abcdef01234567";
    await load("weights.bin", { revision });
    await load("weights.bin", { revision });
    expect(hub.requests.length).toBe(1);
  });

  test("is loaded each time without a cache", async () => {
    env.use_cache = false;
    hub.handler = serve(CONTENT);
    await load();
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(hub.requests.length).toBe(2);
    expect(await cached_files()).toEqual([]);
  });

  test("whose copy was damaged is loaded again", async () => {
    hub.handler = serve(CONTENT);
    await load();
    const [name] = (await readdir(cache_dir, { recursive: true })).filter((path) =>
      path.endsWith("weights.bin"),
    );
    await writeFile(join(cache_dir, name as string), "cut");
    expect((await load())?.equals(CONTENT)).toBe(true);
  });

  test("whose description was damaged is loaded again", async () => {
    hub.handler = serve(CONTENT);
    await load();
    const [name] = (await readdir(cache_dir, { recursive: true })).filter((path) =>
      path.endsWith(".meta.json"),
    );
    await writeFile(join(cache_dir, name as string), "{");
    expect((await load())?.equals(CONTENT)).toBe(true);
  });
});

describe("a base URL", () => {
  test("keeps its query, which appears neither in messages nor in file names", async () => {
    hub.handler = serve(Buffer.from(JSON_TEXT));
    const source = await open_source(`${hub.origin}/models/fashion?sig=secret`, { cache_dir });
    expect(await read_json(source, "config.json")).toEqual({ hidden_size: 48 });
    expect(hub.requests[0]?.url).toBe("/models/fashion/config.json?sig=secret");
    expect(source.name).toBe(`${hub.origin}/models/fashion/`);
    expect((await readdir(cache_dir, { recursive: true })).join()).not.toContain("secret");
  });

  test("may be a URL object and is cached too", async () => {
    hub.handler = serve(CONTENT);
    const url = new URL(`${hub.origin}/models/fashion/`);
    await load("weights.bin", {}, url);
    expect((await load("weights.bin", { local_files_only: true }, url))?.equals(CONTENT)).toBe(true);
  });
});

describe("copies of several URLs", () => {
  const offline = { local_files_only: true };

  test("that differ in their query are cached side by side", async () => {
    hub.handler = (request, response) => void response.writeHead(200).end(request.url);
    const signed = (key: string) => new URL(`${hub.origin}/models/fashion?key=${key}`);
    await load("weights.bin", {}, signed("one"));
    await load("weights.bin", {}, signed("two"));
    for (const key of ["one", "two"]) {
      const bytes = await load("weights.bin", offline, signed(key));
      expect(bytes?.toString()).toBe(`/models/fashion/weights.bin?key=${key}`);
    }
  });

  test("are never taken for one another, where their names on disk are the same", async () => {
    hub.handler = (request, response) => void response.writeHead(200).end(request.url);
    const base = new URL(`${hub.origin}/models/`);
    await load("a,b.bin", {}, base);
    await expect_error(load("a!b.bin", offline, base), "OFFLINE", /isn't in the download cache/);
    expect((await load("a!b.bin", {}, base))?.toString()).toBe("/models/a!b.bin");
  });
});

describe("a download that breaks off", () => {
  test("resumes from where it was", async () => {
    hub.handler = (request, response, count) => {
      if (count === 1) void break_off(response, 1_500_000, { etag: '"v1"' });
      else serve(CONTENT)(request, response, count);
    };
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(hub.header(1, "range")).toMatch(/^bytes=[1-9]\d*-$/);
    expect(hub.header(1, "if-range")).toBe('"v1"');
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });

  test("resumes in a later process", async () => {
    hub.handler = (_, response) => void break_off(response, 1_000_000, { etag: '"v1"' });
    const abort = new AbortController();
    const progress_callback = ({ loaded = 0 }: ProgressInfo) => loaded > 0 && abort.abort();
    await expect_error(
      load("weights.bin", { signal: abort.signal, progress_callback }),
      "ABORTED",
      /aborted/,
    );
    expect((await cached_files()).join()).toMatch(
      /^weights\.bin\.free\.[\w-]+\.incomplete,weights\.bin\.free\.[\w-]+\.incomplete\.json$/,
    );
    hub.handler = serve(CONTENT);
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(hub.header(hub.requests.length - 1, "range")).toMatch(/^bytes=[1-9]\d*-$/);
  });

  test("starts over when the file has changed", async () => {
    const changed = Buffer.from(CONTENT.map((byte) => byte ^ 255));
    hub.handler = (request, response, count) => {
      if (count === 1) void break_off(response, 1_500_000, { etag: '"v1"' });
      else serve(changed, '"v2"')(request, response, count);
    };
    expect((await load())?.equals(changed)).toBe(true);
  });

  test("starts over when the server sends a part of another version", async () => {
    const changed = Buffer.from(CONTENT.map((byte) => byte ^ 255));
    hub.handler = (request, response, count) => {
      if (count === 1) return void break_off(response, 1_500_000, { etag: '"v1"' });
      // This server takes no notice of If-Range.
      delete request.headers["if-range"];
      return serve(changed, '"v2"')(request, response, count);
    };
    expect((await load())?.equals(changed)).toBe(true);
  });

  test("starts over when the server sends another part than was requested", async () => {
    hub.handler = (request, response, count) => {
      if (count === 1) return void break_off(response, 1_500_000, { etag: '"v1"' });
      const from = Number(/\d+/.exec(request.headers.range ?? "")?.[0] ?? 0);
      if (from === 0) return serve(CONTENT)(request, response, count);
      const end = CONTENT.byteLength - 1;
      return void response
        .writeHead(206, { etag: '"v1"', "content-range": `bytes ${from - 1}-${end}/${end + 1}` })
        .end(CONTENT.subarray(from - 1));
    };
    expect((await load())?.equals(CONTENT)).toBe(true);
  });

  test("starts over without a strong ETag", async () => {
    hub.handler = (request, response, count) => {
      if (count === 1) void break_off(response, 1_500_000, { etag: 'W/"v1"' });
      else serve(CONTENT)(request, response, count);
    };
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(hub.header(1, "range")).toBeUndefined();
  });

  test("starts over when more is stored than the file has", async () => {
    hub.handler = (_, response) => void break_off(response, 2_000_000, { etag: '"v1"' });
    const abort = new AbortController();
    const progress_callback = ({ loaded = 0 }: ProgressInfo) => loaded > 1000 && abort.abort();
    await expect_error(
      load("weights.bin", { signal: abort.signal, progress_callback }),
      "ABORTED",
      /aborted/,
    );
    hub.handler = serve(CONTENT.subarray(0, 1000), '"v1"');
    expect((await load())?.equals(CONTENT.subarray(0, 1000))).toBe(true);
  });

  test("is an error after some tries, which reports how far it came", async () => {
    hub.handler = (_, response) => void break_off(response, 1000, {});
    await expect_error(
      load(),
      "NETWORK",
      /weights\.bin (can't be reached, or the connection broke|sent \d+ of 3000000)/,
    );
    expect(hub.requests.length).toBe(4);
    expect(await cached_files()).toEqual([]);
  });

  test("is noticed by its size alone, where the body ends in good order", async () => {
    hub.handler = (request, response, count) => {
      if (count === 1) return void break_off(response, 1_000_000, { etag: '"v1"' });
      const from = /\d+/.exec(request.headers.range ?? "")?.[0];
      return void response
        .writeHead(206, { etag: '"v1"', "content-range": `bytes ${from}-2999999/3000000` })
        .end("short");
    };
    await expect_error(load(), "NETWORK", /weights\.bin sent \d+ of 3000000 bytes/);
  });
});

describe("the SHA-256 that the hub gives", () => {
  const RIGHT = createHash("sha256").update(CONTENT).digest("hex");
  const WRONG = "0".repeat(64);
  const damaged_file =
    /weights\.bin arrived damaged: its SHA-256 is [0-9a-f]{64}, but the server announced [0-9a-f]{64}/;

  /** As the hub does with a large file: a redirect that tells the hash, to where the bytes are. */
  function link(linked_etag: string, blob: Handler = serve(CONTENT)): Handler {
    return (request, response, count) => {
      if (request.url?.startsWith("/blob")) return blob(request, response, count);
      response.writeHead(302, { location: "/blob", "x-linked-etag": linked_etag }).end();
    };
  }
  const blob_requests = () => hub.requests.filter(({ url }) => url === "/blob");

  test("accepts the right file", async () => {
    for (const [file, sha256] of [
      ["a.bin", RIGHT],
      ["b.bin", RIGHT.toUpperCase()],
    ] as const) {
      hub.handler = link(`"${sha256}"`);
      expect((await load(file))?.equals(CONTENT)).toBe(true);
    }
    expect(blob_requests().length).toBe(2);
  });

  test("refuses another one, after one more try, and stores nothing of it", async () => {
    hub.handler = link(`"${WRONG}"`);
    const error = await expect_error(load(), "NETWORK", damaged_file);
    expect(error.details).toMatchObject({ expected_sha256: WRONG, sha256: RIGHT });
    expect(error.message).toContain("Nothing was cached");
    expect(blob_requests().map(({ headers }) => headers.range)).toEqual([undefined, undefined]);
    expect(await cached_files()).toEqual([]);
  });

  test("keeps the older copy where the new one is refused", async () => {
    hub.handler = serve(CONTENT);
    await load();
    hub.handler = link(`"${WRONG}"`, serve(Buffer.from("new"), '"v2"'));
    await expect_error(load(), "NETWORK", damaged_file);
    expect((await load("weights.bin", { local_files_only: true }))?.equals(CONTENT)).toBe(true);
  });

  test("may be met by the second try", async () => {
    const damaged = Buffer.from(CONTENT.map((byte, i) => (i === 2_999_999 ? byte ^ 1 : byte)));
    hub.handler = link(`"${RIGHT}"`, (request, response, count) =>
      serve(blob_requests().length === 1 ? damaged : CONTENT)(request, response, count),
    );
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });

  test("ends even where a server breaks off again and again", async () => {
    hub.handler = link(`"${WRONG}"`, (request, response, count) => {
      if (request.headers.range) serve(CONTENT)(request, response, count);
      else void break_off(response, 2_000_000, { etag: '"v1"' });
    });
    await expect_error(load(), "NETWORK", damaged_file);
    expect(blob_requests().length).toBe(4);
  });

  test.each([
    ["sound", CONTENT],
    ["damaged", Buffer.alloc(CONTENT.byteLength, 7)],
  ])("is that of the whole file where an earlier process left a %s part", async (_, part) => {
    hub.handler = link(`"${RIGHT}"`, (_, response) => {
      response.writeHead(200, { etag: '"v1"', "content-length": CONTENT.byteLength });
      response.write(part.subarray(0, 1_000_000));
    });
    const abort = new AbortController();
    const progress_callback = ({ loaded = 0 }: ProgressInfo) => loaded > 0 && abort.abort();
    await load("weights.bin", { signal: abort.signal, progress_callback }).catch(() => {});
    const before = blob_requests().length;
    hub.handler = link(`"${RIGHT}"`);
    expect((await load())?.equals(CONTENT)).toBe(true);
    const ranges = blob_requests()
      .slice(before)
      .map(({ headers }) => headers.range);
    expect(ranges).toEqual([
      expect.stringMatching(/^bytes=[1-9]\d*-$/),
      ...(part === CONTENT ? [] : [undefined]),
    ]);
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });

  test("is checked without a cache, and with one that can't be written", async () => {
    hub.handler = link(`"${WRONG}"`);
    env.use_cache = false;
    await expect_error(load(), "NETWORK", damaged_file);
    env.use_cache = true;
    env.warn = () => {};
    await writeFile(join(cache_dir, "file"), "");
    await expect_error(load("weights.bin", { cache_dir: join(cache_dir, "file") }), "NETWORK", damaged_file);
    hub.handler = link(`"${RIGHT}"`);
    env.use_cache = false;
    expect((await load())?.equals(CONTENT)).toBe(true);
  });

  test("is compared no longer once the caller aborts", async () => {
    const abort = new AbortController();
    let sent = false;
    const pull = (body: ReadableStreamDefaultController<Uint8Array>) => {
      if (!sent) body.enqueue(CONTENT);
      else {
        body.close();
        setImmediate(() => abort.abort());
      }
      sent = true;
    };
    env.fetch = async () =>
      new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), {
        headers: { "x-linked-etag": `"${RIGHT}"` },
      });
    await expect_error(load("weights.bin", { signal: abort.signal }), "ABORTED", /weights\.bin was aborted/);
    expect(await cached_files()).toEqual([]);
  });

  test("is the first one given along the redirects, the file's own answer included", async () => {
    hub.handler = link(`"${RIGHT}"`, (request, response, count) => {
      response.setHeader("x-linked-etag", `"${WRONG}"`);
      serve(CONTENT)(request, response, count);
    });
    expect((await load())?.equals(CONTENT)).toBe(true);
    hub.handler = (request, response, count) => {
      response.setHeader("x-linked-etag", `"${WRONG}"`);
      serve(CONTENT)(request, response, count);
    };
    await expect_error(load("other.bin"), "NETWORK", /other\.bin arrived damaged/);
  });

  test.each([
    "",
    WRONG,
    `"${WRONG}`,
    `W/"${WRONG}"`,
    `"${WRONG}0"`,
    `"${"g".repeat(64)}"`,
    `"${"0".repeat(40)}"`,
    `"${WRONG}", "${WRONG}"`,
  ])("isn't one as %j", async (linked_etag) => {
    hub.handler = link(linked_etag);
    expect((await load())?.equals(CONTENT)).toBe(true);
  });

  test("isn't the ETag, which is another hash on the hub's servers of large files", async () => {
    hub.handler = serve(CONTENT, `"${WRONG}"`);
    expect((await load())?.equals(CONTENT)).toBe(true);
  });

  test("applies to what another origin sends, which doesn't get the token", async () => {
    const other = new FakeHub();
    await other.start();
    try {
      other.handler = serve(CONTENT);
      hub.handler = (_, response) =>
        void response
          .writeHead(302, { location: `${other.origin}/blob`, "x-linked-etag": `"${WRONG}"` })
          .end();
      await expect_error(load("weights.bin", { token: "hf_secret" }), "NETWORK", damaged_file);
      expect(hub.header(1, "authorization")).toBe("Bearer hf_secret");
      expect(other.requests.map(({ headers }) => headers.authorization)).toEqual([undefined, undefined]);
    } finally {
      await other.stop();
    }
  });
});

describe("a server's refusal", () => {
  test("404 is no file", async () => {
    expect(await load()).toBeUndefined();
  });

  test.each([401, 403])("%i asks for a token", async (status) => {
    hub.handler = (_, response) => void response.writeHead(status).end();
    await expect_error(load(), "ACCESS_DENIED", new RegExp(`status ${status}.*gated or private.*HF_TOKEN`));
    expect(hub.requests.length).toBe(1);
  });

  test("a missing repository, a missing revision and a missing file are different errors", async () => {
    hub.handler = (_, response) => void response.writeHead(401, { "x-error-code": "RepoNotFound" }).end();
    await expect_error(load(), "NOT_FOUND", /repository doesn't exist, or is private/);
    hub.handler = (_, response) => void response.writeHead(404, { "x-error-code": "RevisionNotFound" }).end();
    await expect_error(load("weights.bin", { revision: "v9" }), "NOT_FOUND", /no such revision.*v9/);
  });

  test("429 is waited out as long as the server asks", async () => {
    hub.handler = (request, response, count) => {
      if (count === 1) response.writeHead(429, { "retry-after": "1" }).end();
      else serve(CONTENT)(request, response, count);
    };
    const start = performance.now();
    expect((await load())?.equals(CONTENT)).toBe(true);
    expect(performance.now() - start).toBeGreaterThan(990);
  });

  test("429 for an hour is an error at once", async () => {
    hub.handler = (_, response) => void response.writeHead(429, { "retry-after": "3600" }).end();
    await expect_error(load(), "NETWORK", /status 429/);
    expect(hub.requests.length).toBe(1);
  });

  test("500 is tried again, and is an error in the end", async () => {
    hub.handler = (request, response, count) => {
      if (count < 3) response.writeHead(500).end();
      else serve(CONTENT)(request, response, count);
    };
    expect((await load())?.equals(CONTENT)).toBe(true);
    hub.handler = (_, response) => void response.writeHead(503).end();
    await expect_error(load("other.bin"), "NETWORK", /other\.bin answers with status 503/);
  });

  test("418 is an error at once", async () => {
    hub.handler = (_, response) => void response.writeHead(418).end();
    const error = await expect_error(load(), "NETWORK", /status 418/);
    expect(error.details).toMatchObject({ status: 418 });
    expect(hub.requests.length).toBe(1);
  });

  test("a page instead of a file names its address", async () => {
    hub.handler = (_, response) =>
      void response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><html></html>");
    await expect_error(load("config.json"), "NOT_FOUND", /resolve\/main\/config\.json is a web page/);
    hub.handler = (_, response) => void response.writeHead(200).end("\n<html><body>Sign in</body></html>");
    await expect_error(load(), "NOT_FOUND", /web page/);
    expect(await cached_files()).toEqual([]);
  });

  test("pages for some files don't hide the weights that are there", async () => {
    const fixture = await readFile(new URL("../fixtures/pytorch_bin/pytorch_model.bin", import.meta.url));
    hub.handler = (request, response, count) => {
      if (request.url?.endsWith("/pytorch_model.bin")) serve(fixture)(request, response, count);
      else response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html>");
    };
    const checkpoint = await open_checkpoint(await open_source("org/name", { cache_dir }));
    expect(checkpoint.tensors.size).toBe(56);
    await checkpoint.close();
    hub.handler = (_, response) => void response.writeHead(200).end("<!doctype html>");
    await expect_error(
      open_checkpoint(await open_source("org/other", { cache_dir })),
      "NOT_FOUND",
      /model\.safetensors is a web page/,
    );
  });

  /** A server of shards with one tensor each. */
  function shards(count: number, answer: (name: string, response: ServerResponse, content: Buffer) => void) {
    const names = Array.from({ length: count }, (_, i) => `model-${i}.safetensors`);
    const weight_map = Object.fromEntries(names.map((name, i) => [`t${i}`, name]));
    hub.handler = (request, response) => {
      const name = request.url?.split("/").pop() as string;
      if (name === "model.safetensors.index.json") response.end(JSON.stringify({ weight_map }));
      else if (!names.includes(name)) response.writeHead(404).end();
      else {
        const key = `t${names.indexOf(name)}`;
        const header = Buffer.from(
          JSON.stringify({ [key]: { dtype: "F32", shape: [1], data_offsets: [0, 4] } }),
        );
        const length = Buffer.alloc(8);
        length.writeUInt32LE(header.length);
        answer(name, response, Buffer.concat([length, header, Buffer.alloc(4)]));
      }
    };
  }

  test("shards download four at a time", async () => {
    const waiting: (() => void)[] = [];
    let [open, most, has_begun] = [0, 0, false];
    shards(6, (_, response, content) => {
      most = Math.max(most, ++open);
      waiting.push(() => {
        open--;
        response.end(content);
      });
      // None is answered before four have been requested.
      has_begun ||= waiting.length === 4;
      if (has_begun) for (const reply of waiting.splice(0)) reply();
    });
    const checkpoint = await open_checkpoint(await open_source("org/name", { cache_dir }));
    expect([...checkpoint.tensors.keys()]).toEqual(["t0", "t1", "t2", "t3", "t4", "t5"]);
    expect(most).toBe(4);
    await checkpoint.close();
  });

  test("a missing shard ends the requests for others", async () => {
    const requested: string[] = [];
    shards(20, (name, response, content) => {
      requested.push(name);
      if (name === "model-1.safetensors") response.writeHead(404).end();
      else response.end(content);
    });
    const opening = open_checkpoint(await open_source("org/name", { cache_dir }));
    await expect_error(opening, "NOT_FOUND", /lacks the shard model-1\.safetensors/);
    expect(requested.length).toBeLessThan(20);
  });

  test("redirects without end", async () => {
    hub.handler = (_, response) => void response.writeHead(302, { location: "/again" }).end();
    await expect_error(load(), "NETWORK", /redirects more than 10 times/);
  });

  test("a redirect from https to http", async () => {
    env.fetch = async () =>
      new Response(null, { status: 302, headers: { location: "http://plain.test/weights.bin" } });
    await expect_error(
      load("weights.bin", {}, new URL("https://models.test/")),
      "NETWORK",
      /models\.test.* redirects to an address that isn't safe to follow/,
    );
  });

  test.each(["file:///etc/passwd", "http://[", "javascript:1"])("a redirect to %s", async (location) => {
    hub.handler = (_, response) => void response.writeHead(302, { location }).end();
    await expect_error(load(), "NETWORK", /isn't safe to follow/);
  });
});

describe("the token", () => {
  test("goes to the hub, and not along a redirect to another origin", async () => {
    const other = new FakeHub();
    await other.start();
    try {
      other.handler = serve(CONTENT);
      hub.handler = (_, response) =>
        void response.writeHead(302, { location: `${other.origin}/blob?x=1` }).end();
      expect((await load("weights.bin", { token: "hf_secret" }))?.equals(CONTENT)).toBe(true);
      expect(hub.header(0, "authorization")).toBe("Bearer hf_secret");
      expect(other.requests.length).toBe(1);
      expect(other.header(0, "authorization")).toBeUndefined();
    } finally {
      await other.stop();
    }
  });

  test("comes from HF_TOKEN by default, follows a redirect at home, and isn't sent to a base URL elsewhere", async () => {
    process.env.HF_TOKEN = "hf_env";
    hub.handler = (request, response, count) => {
      if (count === 1) response.writeHead(307, { location: "/moved" }).end();
      else serve(CONTENT)(request, response, count);
    };
    await load();
    expect(hub.header(0, "authorization")).toBe("Bearer hf_env");
    expect(hub.header(1, "authorization")).toBe("Bearer hf_env");
    env.remote_host = "https://huggingface.co";
    await load("weights.bin", {}, `${hub.origin}/elsewhere`);
    expect(hub.header(2, "authorization")).toBeUndefined();
  });
});

describe("compressed answers", () => {
  test("aren't asked for, and their size isn't held against them", async () => {
    const packed = gzipSync(JSON_TEXT.repeat(100));
    hub.handler = (_, response) => {
      response
        .writeHead(200, { "content-encoding": "gzip", "content-length": packed.byteLength, etag: 'W/"v1"' })
        .end(packed);
    };
    expect((await load("vocab.txt"))?.toString()).toBe(JSON_TEXT.repeat(100));
    expect(hub.header(0, "accept-encoding")).toBe("identity");
    expect((await load("vocab.txt"))?.toString()).toBe(JSON_TEXT.repeat(100));
  });
});

describe("without the network", () => {
  test("a cached copy is used, and what was missing is missing", async () => {
    hub.handler = (request, response, count) => {
      if (request.url?.endsWith("config.json")) serve(Buffer.from(JSON_TEXT))(request, response, count);
      else response.writeHead(404).end();
    };
    await load("config.json");
    await load("model.safetensors");
    const before = hub.requests.length;
    expect((await load("config.json", { local_files_only: true }))?.toString()).toBe(JSON_TEXT);
    expect(await load("model.safetensors", { local_files_only: true })).toBeUndefined();
    env.allow_remote_models = false;
    expect((await load("config.json"))?.toString()).toBe(JSON_TEXT);
    expect(hub.requests.length).toBe(before);
  });

  test("a model that was missing is an error that says so, and how to ask again", async () => {
    const open = (options: LoadOptions = {}) =>
      ViTMSNConfig.from_pretrained("org/gone", { cache_dir, ...options });
    const gone = /^org\/gone has no config\.json\. Is it a ViT-MSN model, and is the path right\?$/;
    await expect_error(open(), "NOT_FOUND", gone);
    const hint = "a server's earlier answer that there is no such file. Load the model once while online.";
    const local = await expect_error(
      open({ local_files_only: true }),
      "NOT_FOUND",
      /since local_files_only is set/,
    );
    expect(local.message).toContain(hint);
    env.allow_remote_models = false;
    const offline = await expect_error(open(), "NOT_FOUND", /since env\.allow_remote_models is false/);
    expect(offline.message).toContain(hint);
    const folder = ViTMSNConfig.from_pretrained(cache_dir, { local_files_only: true });
    await expect_error(
      folder,
      "NOT_FOUND",
      /has no config\.json\. Is it a ViT-MSN model, and is the path right\?$/,
    );
    const files = ViTMSNConfig.from_pretrained({}, { local_files_only: true });
    await expect_error(files, "NOT_FOUND", /right\?$/);
  });

  test("what isn't cached is an error that names where it was looked for", async () => {
    const error = await expect_error(
      load("config.json", { local_files_only: true }),
      "OFFLINE",
      /config\.json isn't in the download cache/,
    );
    expect(error.message).toContain(cache_dir);
    expect(error.message).toContain("local_files_only is set");
    env.allow_remote_models = false;
    await expect_error(load("config.json"), "OFFLINE", /env\.allow_remote_models is false/);
    expect(hub.requests.length).toBe(0);
  });

  test("the copy is used where a server fails or is gone", async () => {
    hub.handler = serve(CONTENT);
    await load();
    hub.handler = (_, response) => void response.writeHead(500).end();
    expect((await load())?.equals(CONTENT)).toBe(true);
    await hub.stop();
    expect((await load())?.equals(CONTENT)).toBe(true);
    await expect_error(load("other.bin"), "NETWORK", /other\.bin can't be reached/);
    hub = new FakeHub();
    await hub.start();
  });

  test("the copy is used where a server doesn't answer", async () => {
    hub.handler = serve(CONTENT);
    await load();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      hub.handler = () => vi.advanceTimersByTime(10_001);
      expect((await load())?.equals(CONTENT)).toBe(true);
    } finally {
      vi.useRealTimers();
    }
  });

  test("a file that was missing may appear, and one that was there may go", async () => {
    expect(await load()).toBeUndefined();
    hub.handler = serve(CONTENT);
    expect((await load())?.equals(CONTENT)).toBe(true);
    hub.handler = (_, response) => void response.writeHead(404).end();
    expect(await load()).toBeUndefined();
    expect(await load("weights.bin", { local_files_only: true })).toBeUndefined();
  });
});

describe("an abort", () => {
  test("ends a body that comes slowly", async () => {
    const abort = new AbortController();
    hub.handler = (_, response) => {
      response.writeHead(200, { "content-length": 1000 }).write("x");
      setTimeout(() => abort.abort(new Error("enough")), 100);
    };
    const error = await expect_error(
      load("weights.bin", { signal: abort.signal }),
      "ABORTED",
      /weights\.bin was aborted/,
    );
    expect(error.cause).toMatchObject({ message: "enough" });
    expect(await cached_files()).toEqual([]);
  });

  test("ends a wait for the server and one between tries", async () => {
    const waiting = new AbortController();
    hub.handler = () => waiting.abort();
    await expect_error(load("a.bin", { signal: waiting.signal }), "ABORTED", /aborted/);
    const between = new AbortController();
    hub.handler = (_, response) => {
      response.writeHead(503, { "retry-after": "60" }).end(() => setTimeout(() => between.abort(), 100));
    };
    const start = performance.now();
    await expect_error(load("b.bin", { signal: between.signal }), "ABORTED", /aborted/);
    expect(performance.now() - start).toBeLessThan(55_000); // the server asks for 60 s
  });
});

describe("progress", () => {
  test("grows to the whole file", async () => {
    const half = CONTENT.byteLength / 2;
    let send_rest = () => {};
    hub.handler = (_, response) => {
      response.writeHead(200, { "content-length": CONTENT.byteLength }).write(CONTENT.subarray(0, half));
      send_rest = () => void response.end(CONTENT.subarray(half));
    };
    const seen: ProgressInfo[] = [];
    const start = performance.now();
    const progress_callback = (info: ProgressInfo) => {
      // What comes within 100 ms of a report isn't reported.
      if (info.status === "progress" && !seen.some(({ status }) => status === "progress"))
        setTimeout(send_rest, 150);
      seen.push(info);
    };
    await load("weights.bin", { progress_callback });
    const tenths = (performance.now() - start) / 100;
    expect(seen[0]).toEqual({ status: "initiate", name: "org/name", file: "weights.bin" });
    expect(seen.at(-1)).toMatchObject({ status: "done", loaded: 3_000_000, total: 3_000_000, progress: 100 });
    const loaded = seen.filter(({ status }) => status === "progress").map((info) => info.loaded as number);
    expect(loaded.length).toBeGreaterThan(1);
    expect(loaded.length).toBeLessThan(3 + tenths);
    expect(loaded).toEqual([...loaded].sort((a, b) => a - b));
  });

  test("a callback that throws ends the download with its own error", async () => {
    hub.handler = serve(CONTENT);
    const progress_callback = ({ status }: ProgressInfo) => {
      if (status === "progress") throw new RangeError("mine");
    };
    await expect(load("weights.bin", { progress_callback })).rejects.toThrow("mine");
    expect(hub.requests.length).toBe(1);
  });
});

describe("two downloads at once", () => {
  test("of one file both end whole", async () => {
    hub.handler = (_, response) => {
      response.writeHead(200, { etag: '"v1"', "content-length": CONTENT.byteLength });
      response.write(CONTENT.subarray(0, 1_000_000));
      setTimeout(() => response.end(CONTENT.subarray(1_000_000)), 100);
    };
    const results = await Promise.all(Array.from({ length: 4 }, () => load()));
    expect(results.every((bytes) => bytes?.equals(CONTENT))).toBe(true);
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });

  test("of which one was killed: the next resumes it, one at a time", async () => {
    const name = "weights.bin";
    const base = `${hub.origin}/x`;
    hub.handler = serve(CONTENT);
    await load(name, {}, base);
    const path = (await readdir(cache_dir, { recursive: true })).find((found) =>
      found.endsWith(name),
    ) as string;
    const dead = join(cache_dir, `${path}.${hostname().replace(/\W/g, "_")}-${2 ** 22 + 1}.1.incomplete`);
    await rm(join(cache_dir, `${path}.meta.json`));
    await writeFile(dead, CONTENT.subarray(0, 2_000_000));
    await writeFile(
      `${dead}.json`,
      JSON.stringify({ url: `${base}/${name}`, etag: '"v1"', size: 0, missing: false }),
    );
    const results = await Promise.all([load(name, {}, base), load(name, {}, base)]);
    expect(results.every((bytes) => bytes?.equals(CONTENT))).toBe(true);
    const ranges = hub.requests.slice(1).map(({ headers }) => headers.range);
    expect(ranges.sort()).toEqual(["bytes=2000000-", undefined]);
    expect(await cached_files()).toEqual(["weights.bin", "weights.bin.meta.json"]);
  });
});

test("a cache that can't be written is a warning, and the download serves from memory", async () => {
  const warnings: string[] = [];
  env.warn = (message) => warnings.push(message);
  hub.handler = serve(CONTENT);
  await writeFile(join(cache_dir, "file"), "");
  expect((await load("weights.bin", { cache_dir: join(cache_dir, "file") }))?.equals(CONTENT)).toBe(true);
  expect(warnings.join()).toMatch(/can't be written; set env.cache_dir/);
});
