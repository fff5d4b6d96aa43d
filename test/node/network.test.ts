import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from "node:http";
import { createServer as create_tls_server } from "node:https";
import { type AddressInfo, connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { RawImage as BuiltRawImage } from "vit-msn";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { env } from "../../ts/env.ts";
import type { VitMsnError } from "../../ts/errors.ts";
import { RawImage } from "../../ts/image/raw_image.ts";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import { may_send_token } from "../../ts/loading/storage.node.ts";
import { find_proxy } from "../../ts/network/proxy_settings.node.ts";
import { show_url } from "../../ts/network/show_url.ts";
import { type Finished, root, vit_msn } from "../support/cli.ts";
import { expect_error } from "../support/errors.ts";
import { skipped } from "../support/skips.ts";

const SECRET = "s3cr:t/word";
const ENCODED = encodeURIComponent(SECRET);
const TINY = join(root, "test/fixtures/tiny");
const IMAGE = join(root, "models/fashion/pictures/8-bag.png");
const CERTIFICATE = join(root, "test/fixtures/tls/certificate.pem");
const VARIABLES = [
  ...["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"].flatMap((name) => [name, name.toLowerCase()]),
  ...["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"],
  ...["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "REQUEST_METHOD"],
];
const original = { ...env };
const closing: (() => Promise<void>)[] = [];
let folder: string;

beforeEach(async () => {
  for (const name of VARIABLES) vi.stubEnv(name, undefined);
  folder = await mkdtemp(join(tmpdir(), "vit-msn-network-"));
});

afterEach(async () => {
  vi.unstubAllEnvs();
  Object.assign(env, original);
  for (const close of closing.splice(0)) await close();
  await rm(folder, { recursive: true, force: true });
});

interface Listening {
  origin: string;
  /** host:port */
  host: string;
  requests: IncomingMessage[];
  server: Server;
}

async function listen(listener: RequestListener, server: Server = createServer()): Promise<Listening> {
  const requests: IncomingMessage[] = [];
  server.on("request", (request: IncomingMessage, response: ServerResponse) => {
    requests.push(request);
    listener(request, response);
  });
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => sockets.add(socket));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closing.push(async () => {
    // Tunnels are no longer the server's own connections.
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  const { port } = server.address() as AddressInfo;
  const scheme = "setSecureContext" in server ? "https" : "http";
  return { origin: `${scheme}://127.0.0.1:${port}`, host: `127.0.0.1:${port}`, requests, server };
}

/** A proxy that tunnels, and answers what is asked over http itself. `targets` are the hosts of its tunnels. */
async function listen_as_proxy(answer: RequestListener = (_, response) => response.end()) {
  const proxy = await listen(answer);
  const tunnels: IncomingMessage[] = [];
  proxy.server.on("connect", (request, socket) => {
    tunnels.push(request);
    const [host, port] = (request.url as string).split(":");
    const target = connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      target.pipe(socket).pipe(target);
    });
    socket.on("error", () => target.destroy());
    target.on("error", () => socket.destroy());
  });
  return { ...proxy, tunnels };
}

const image_bytes = await readFile(IMAGE);
const serve_image: RequestListener = (_, response) => void response.end(image_bytes);

/** Serves the files of a folder, as a hub's repository org/name. */
const serve_model: RequestListener = (request, response) => {
  const path = join(TINY, (request.url as string).split("?")[0]?.split("/").at(-1) as string);
  if (!existsSync(path)) return void response.writeHead(404).end();
  void readFile(path).then((bytes) => response.writeHead(200, { etag: '"1"' }).end(bytes));
};

async function cached_files(): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => name);
}

/** Everything that an error says. */
function said_by(error: VitMsnError): string {
  return `${error.stack} ${JSON.stringify(error.details)} ${(error.cause as Error | undefined)?.stack}`;
}

describe("the proxy of a URL", () => {
  const proxy_of = (url: string, variables: Record<string, string>) => {
    for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value);
    return find_proxy(new URL(url))?.url.href;
  };

  test.each([
    ["https://host/x", { HTTPS_PROXY: "http://p:1" }, "http://p:1/"],
    ["https://host/x", { https_proxy: "http://p:1" }, "http://p:1/"],
    ["https://host/x", { https_proxy: "http://p:1", HTTPS_PROXY: "http://q:2" }, "http://p:1/"],
    ["https://host/x", { HTTP_PROXY: "http://p:1" }, undefined],
    ["http://host/x", { HTTP_PROXY: "http://p:1" }, "http://p:1/"],
    ["http://host/x", { HTTPS_PROXY: "http://p:1" }, undefined],
    ["http://host/x", { ALL_PROXY: "http://p:1" }, "http://p:1/"],
    ["https://host/x", { all_proxy: "http://p:1" }, "http://p:1/"],
    ["https://host/x", { HTTPS_PROXY: "p:1" }, "http://p:1/"],
    ["https://host/x", { HTTPS_PROXY: " https://p:1 " }, "https://p:1/"],
    ["https://host/x", { HTTPS_PROXY: "" }, undefined],
    ["http://host/x", { HTTP_PROXY: "http://p:1", REQUEST_METHOD: "GET" }, undefined],
    ["blob:nodedata:1", { ALL_PROXY: "http://p:1" }, undefined],
  ])("%s with %j is %j", (url, variables, expected) => {
    expect(proxy_of(url, variables)).toBe(expected);
  });

  test.each([
    ["https://host.corp/", "host.corp", true],
    ["https://host.corp/", "corp", true],
    ["https://host.corp/", ".corp", true],
    ["https://host.corp/", "*.corp", true],
    ["https://host.corp/", "HOST.CORP", true],
    ["https://host.corp/", "a, host.corp ,b", true],
    ["https://host.corp/", "a host.corp", true],
    ["https://host.corp/", "*", true],
    ["https://host.corp/", "host.corp:443", true],
    ["https://host.corp/", "host.corp:8443", false],
    ["https://host.corp:8443/", "host.corp:8443", true],
    ["https://myhost.corp/", "host.corp", false],
    ["https://host.corp.evil/", "host.corp", false],
    ["https://host.corp/", "", false],
    ["https://127.0.0.1/", "127.0.0.1", true],
    ["https://127.0.0.1/", "0.0.1", false],
    ["https://10.1.2.3/", "10.0.0.0/8", true],
    ["https://11.1.2.3/", "10.0.0.0/8", false],
    ["https://[::1]/", "::1", true],
    ["https://[::1]/", "[::1]", true],
    ["https://[::1]:8/", "[::1]:8", true],
    ["https://[fd00::5]/", "fd00::/8", true],
    ["https://host.corp/", "10.0.0.0/99", false],
  ])("%s with NO_PROXY=%j: exempt is %j", (url, no_proxy, is_exempt) => {
    expect(proxy_of(url, { ALL_PROXY: "http://p:1", NO_PROXY: no_proxy }) === undefined).toBe(is_exempt);
  });

  test("is refused where it can't be used, without its password in the message", async () => {
    vi.stubEnv("HTTPS_PROXY", `socks5://me:${ENCODED}@p:1`);
    const socks = await expect_error(
      () => find_proxy(new URL("https://h/")),
      "UNSUPPORTED",
      /HTTPS_PROXY.*socks5/,
    );
    vi.stubEnv("HTTPS_PROXY", `http://me:${SECRET}@:x`);
    const broken = await expect_error(
      () => find_proxy(new URL("https://h/")),
      "INVALID_ARGUMENT",
      /HTTPS_PROXY/,
    );
    for (const error of [socks, broken]) expect(said_by(error)).not.toMatch(/s3cr/);
  });
});

describe("through a proxy", () => {
  test("http requests go to the proxy, with its user and password", async () => {
    const proxy = await listen_as_proxy(serve_image);
    vi.stubEnv("HTTP_PROXY", `http://me:${ENCODED}@${proxy.host}`);
    const image = await RawImage.read("http://images.test/a.png?size=1");
    expect(image.width).toBe(28);
    const [request] = proxy.requests;
    expect(request?.url).toBe("http://images.test/a.png?size=1");
    expect(request?.headers.host).toBe("images.test");
    expect(request?.headers.authorization).toBeUndefined();
    const given = Buffer.from(`me:${SECRET}`).toString("base64");
    expect(request?.headers["proxy-authorization"]).toBe(`Basic ${given}`);
  });

  test("https goes through a tunnel, in the command line too", async () => {
    const key = await readFile(join(root, "test/fixtures/tls/key.pem"));
    const cert = await readFile(CERTIFICATE);
    const host = await listen(serve_image, create_tls_server({ key, cert }) as unknown as Server);
    const proxy = await listen_as_proxy();
    const variables = { HTTPS_PROXY: proxy.origin, NODE_EXTRA_CA_CERTS: CERTIFICATE };
    const { code, stdout } = await vit_msn(["classify", `${host.origin}/bag.png`, "-k", "1"], {
      env: variables,
    });
    expect(stdout).toMatch(/Bag/);
    expect(code).toBe(0);
    expect(proxy.tunnels.map(({ url }) => url)).toEqual([host.host]);
    // The authority isn't known: a proxy that re-signs https looks like this.
    const args = ["classify", `${host.origin}/bag.png`, "--retries", "0"];
    const refused = await vit_msn(args, { env: { HTTPS_PROXY: proxy.origin } });
    expect(refused.stderr).toMatch(/NODE_EXTRA_CA_CERTS/);
  });

  test("a model is downloaded, from redirects and compressed answers", async () => {
    const proxy = await listen_as_proxy((request, response) => {
      const { pathname } = new URL(request.url as string);
      if (!pathname.startsWith("/moved"))
        return void response.writeHead(302, { location: `/moved${pathname}` }).end();
      void readFile(join(TINY, pathname.split("/").at(-1) as string)).then((bytes) =>
        response.writeHead(200, { "content-encoding": "gzip" }).end(gzipSync(bytes)),
      );
    });
    vi.stubEnv("http_proxy", proxy.origin);
    const source = await open_source("http://models.test/tiny/", { cache_dir: folder });
    expect(await read_json(source, "config.json")).toMatchObject({ hidden_size: 48 });
    expect(proxy.requests.map(({ url }) => url)).toEqual([
      "http://models.test/tiny/config.json",
      "http://models.test/moved/tiny/config.json",
    ]);
  });

  test("a redirect to another origin doesn't get the user and password", async () => {
    const proxy = await listen_as_proxy((request, response) => {
      if (request.url?.startsWith("http://other.test")) serve_image(request, response);
      else response.writeHead(302, { location: "http://other.test/b.png" }).end();
    });
    vi.stubEnv("HTTP_PROXY", proxy.origin);
    await RawImage.read("http://me:word@images.test/a.png", { headers: { Cookie: "a=1" } });
    expect(proxy.requests.map(({ headers }) => headers.authorization !== undefined)).toEqual([true, false]);
    expect(proxy.requests.map(({ headers }) => headers.cookie)).toEqual(["a=1", undefined]);
  });

  test("a proxy's refusal names it, the variable and what to do, but no password", async () => {
    const proxy = await listen(() => {});
    proxy.server.on("connect", (_, socket) => socket.end("HTTP/1.1 407 No\r\n\r\n"));
    vi.stubEnv("HTTPS_PROXY", `http://me:${ENCODED}@${proxy.host}`);
    const error = await expect_error(
      RawImage.read("https://images.test/a.png"),
      "NETWORK",
      /proxy .* \(HTTPS_PROXY\) answered with status 407 .*user and a password/,
    );
    expect(error.details.status).toBe(407);
    expect(said_by(error)).not.toMatch(/s3cr|me:/);
  });

  test("a proxy that isn't there is named", async () => {
    vi.stubEnv("HTTPS_PROXY", "http://127.0.0.1:9/");
    const error = await expect_error(RawImage.read("https://images.test/a.png"), "NETWORK", /ECONNREFUSED/);
    expect(error.message).toMatch(/through the proxy http:\/\/127\.0\.0\.1:9 \(HTTPS_PROXY\)/);
  });

  test("an abort ends a tunnel that is never opened", async () => {
    const proxy = await listen(() => {});
    const controller = new AbortController();
    proxy.server.on("connect", () => controller.abort());
    vi.stubEnv("HTTPS_PROXY", proxy.origin);
    const reading = RawImage.read("https://images.test/a.png", { signal: controller.signal });
    await expect_error(reading, "ABORTED", /abort/);
  });
});

test("without a proxy, the error of an unreachable host mentions proxies and mirrors", async () => {
  const { origin } = await listen(() => {});
  await closing.pop()?.();
  await expect_error(RawImage.read(`${origin}/a.png`), "NETWORK", /ECONNREFUSED.*HTTPS_PROXY.*HF_ENDPOINT/);
});

describe("environment variables of the hub", () => {
  const classify = (variables: Record<string, string>, ...args: string[]): Promise<Finished> =>
    vit_msn(["classify", IMAGE, "--model", "org/name", "--cache-dir", join(folder, "own"), ...args], {
      env: variables,
    });

  test("HF_ENDPOINT names a mirror", async () => {
    const mirror = await listen(serve_model);
    const { code, stderr } = await classify({ HF_ENDPOINT: `${mirror.origin}/` });
    expect(stderr).not.toMatch(/NETWORK|NOT_FOUND/);
    expect(code).toBe(0);
    expect(mirror.requests[0]?.url).toMatch(/^\/org\/name\/resolve\/main\//);
  });

  test("a user and password in HF_ENDPOINT are sent in a header", async () => {
    const mirror = await listen(serve_model);
    const { code } = await classify({ HF_ENDPOINT: mirror.origin.replace("//", `//me:${ENCODED}@`) });
    expect(code).toBe(0);
    const sent = new Set(mirror.requests.map(({ headers }) => headers.authorization));
    expect([...sent]).toEqual([`Basic ${btoa(`me:${SECRET}`)}`]);
  });

  test.each(["127.0.0.1:8080", "localhost:8080", "me:s3cret@host", "ftp://host", "https://host?key=s3cret"])(
    "the address %s of a hub is refused, and not shown",
    async (address) => {
      Object.assign(env, { remote_host: address });
      const error = await open_source("org/name").catch((error: VitMsnError) => error);
      expect(error).toMatchObject({
        code: "INVALID_ARGUMENT",
        message: expect.stringMatching(/^env\.remote_host \(HF_ENDPOINT\) isn't the URL of a hub/),
      });
      expect(String(error)).not.toContain("s3cret");
    },
  );

  test.each(["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])("%s forbids the network", async (name) => {
    const mirror = await listen(serve_model);
    const { code, stderr } = await classify({ HF_ENDPOINT: mirror.origin, [name]: "1" });
    expect(stderr).toMatch(new RegExp(`${name} is set.*\\[OFFLINE\\]`));
    expect(code).toBe(1);
    expect(mirror.requests).toEqual([]);
  });

  test("HUGGING_FACE_HUB_TOKEN is read where HF_TOKEN isn't set", async () => {
    const hub = await listen(serve_model);
    Object.assign(env, { remote_host: hub.origin });
    vi.stubEnv("HUGGING_FACE_HUB_TOKEN", "hf_old\n");
    const source = await open_source("org/name", { cache_dir: folder });
    await (await source.open("config.json"))?.close();
    expect(hub.requests[0]?.headers.authorization).toBe("Bearer hf_old");
  });

  test.each(["hf_SECRET\nx: y", "hf_SECRET\u4e2d"])(
    "a token that can't be sent, %j, isn't in the message",
    async (token) => {
      const hub = await listen(serve_model);
      Object.assign(env, { remote_host: hub.origin });
      const source = await open_source("org/name", { cache_dir: folder, token });
      const error = await expect_error(source.open("config.json"), "INVALID_ARGUMENT", /hub token/);
      expect(said_by(error)).not.toMatch(/SECRET/);
      expect(hub.requests).toEqual([]);
    },
  );

  test("a token isn't sent over http to another machine, unless env allows it", () => {
    const warnings: string[] = [];
    env.warn = (message) => warnings.push(message);
    const sends = (url: string) => may_send_token(new URL(url));
    expect(
      ["https://h/", "http://localhost:1/", "http://a.localhost/", "http://127.9.8.7/", "http://[::1]/"].map(
        sends,
      ),
    ).toEqual(Array(5).fill(true));
    expect(warnings).toEqual([]);
    expect(
      ["http://mirror.corp/", "http://127.0.0.1.evil/", "http://10.0.0.1/", "http://localhost.evil/"].map(
        sends,
      ),
    ).toEqual(Array(4).fill(false));
    expect(warnings).toHaveLength(4);
    expect(warnings[0]).toMatch(/http:\/\/mirror.corp.*https/);
    env.allow_token_over_http = true;
    expect(sends("http://mirror.corp/")).toBe(true);
  });
});

describe("a model that Python's huggingface_hub has downloaded", () => {
  const COMMIT = "0123456789abcdef0123456789abcdef01234567";

  /** As huggingface_hub lays it out: snapshots are links into blobs. */
  async function download_as_python(files: string[], home = join(folder, "hf")): Promise<string> {
    const repo = join(home, "hub/models--org--name");
    for (const path of ["blobs", "refs", `snapshots/${COMMIT}`])
      await mkdir(join(repo, path), { recursive: true });
    await writeFile(join(repo, "refs/main"), COMMIT);
    for (const file of files) {
      await writeFile(join(repo, "blobs", `hash-of-${file}`), await readFile(join(TINY, file)));
      await symlink(`../../blobs/hash-of-${file}`, join(repo, "snapshots", COMMIT, file));
    }
    return repo;
  }
  const ALL = ["config.json", "model.safetensors", "preprocessor_config.json"];
  const classify = (model: string, variables: Record<string, string>, ...args: string[]) =>
    vit_msn(["classify", IMAGE, "--model", model, ...args], {
      env: { XDG_CACHE_HOME: join(folder, "xdg"), ...variables },
    });

  test.each([
    ["HF_HOME", (home: string) => ({ HF_HOME: home })],
    ["HF_HUB_CACHE", (home: string) => ({ HF_HUB_CACHE: join(home, "hub") })],
    ["XDG_CACHE_HOME", () => ({})],
  ])("is found by %s, without the network", async (name, variables) => {
    const hub = await listen(serve_model);
    const home = join(folder, name === "XDG_CACHE_HOME" ? "xdg/huggingface" : "hf");
    await download_as_python(ALL, home);
    const { code, stderr } = await classify("org/name", { ...variables(home), HF_ENDPOINT: hub.origin });
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(hub.requests).toEqual([]);
  });

  test("is asked for at its commit where a file is missing, and offline nothing is asked", async () => {
    const hub = await listen(serve_model);
    await download_as_python(["config.json", "preprocessor_config.json"]);
    const variables = { HF_HOME: join(folder, "hf"), HF_ENDPOINT: hub.origin };
    const offline = await classify("org/name", { ...variables, HF_HUB_OFFLINE: "1" });
    expect(offline.stderr).toMatch(/org\/name holds no weights.*NOT_FOUND/);
    expect(hub.requests).toEqual([]);
    expect((await classify("org/name", variables)).code).toBe(0);
    expect(hub.requests.map(({ url }) => url)).toEqual([`/org/name/resolve/${COMMIT}/model.safetensors`]);
  });

  test("isn't used for another revision", async () => {
    const hub = await listen(serve_model);
    await download_as_python(ALL);
    const variables = { HF_HOME: join(folder, "hf"), HF_ENDPOINT: hub.origin };
    await classify("org/name", variables, "--revision", "v2");
    expect(hub.requests[0]?.url).toMatch(/resolve\/v2\//);
  });

  test("is opened by the path of its folder", async () => {
    const repo = await download_as_python(ALL);
    expect((await classify(repo, {})).code).toBe(0);
    await rm(join(repo, "refs"), { recursive: true });
    expect((await classify(repo, {})).code).toBe(0);
    const { stderr } = await classify(repo, {}, "--revision", "v2");
    expect(stderr).toMatch(new RegExp(`without the revision "v2".*${COMMIT}.*NOT_FOUND`));
  });

  test("can't lead elsewhere by its ref", async () => {
    const hub = await listen(serve_model);
    const repo = await download_as_python(ALL);
    await writeFile(join(repo, "refs/main"), "../../../secret");
    const { code } = await classify("org/name", { HF_HOME: join(folder, "hf"), HF_ENDPOINT: hub.origin });
    expect(code).toBe(0);
    expect(hub.requests[0]?.url).toMatch(/resolve\/main\//);
  });
});

describe("how much a server may send", () => {
  const LIMIT = 32 * 1024 * 1024;
  const load = async (hub: Listening, use_cache: boolean, file = "config.json") => {
    Object.assign(env, { remote_host: hub.origin, use_cache });
    return read_json(await open_source("org/name", { cache_dir: folder }), file);
  };

  describe.each([true, false])("with use_cache %j", (use_cache) => {
    test("JSON without end is cut off at its limit", async () => {
      let sent = 0;
      const hub = await listen((_, response) => {
        response.writeHead(200, { etag: '"x"' });
        const block = Buffer.alloc(1 << 20, " ");
        const push = () => {
          while (!response.destroyed && response.write(block)) sent += block.length;
          sent += block.length;
        };
        response.on("drain", push);
        push();
      });
      await expect_error(load(hub, use_cache), "INVALID_CONFIG", /more than the limit of 33554432 bytes/);
      expect(sent).toBeLessThan(2 * LIMIT);
      expect(await cached_files()).toEqual([]);
    });

    test("JSON that is declared to be too long isn't read", async () => {
      const hub = await listen((_, response) => {
        response.writeHead(200, { etag: '"x"', "content-length": 1e12 }).write("{}");
      });
      await expect_error(load(hub, use_cache), "INVALID_CONFIG", /more than the limit of 33554432 bytes/);
      expect(await cached_files()).toEqual([]);
    });

    test("compressed JSON is measured as it is unpacked", async () => {
      const bomb = gzipSync(Buffer.alloc(3 * LIMIT, " "));
      const hub = await listen((_, response) => {
        response.writeHead(200, { "content-encoding": "gzip", "content-length": bomb.length }).end(bomb);
      });
      await expect_error(load(hub, use_cache), "INVALID_CONFIG", /more than the limit of 33554432 bytes/);
      expect(await cached_files()).toEqual([]);
    });
  });

  test("weights are limited to the size that the hub gives", async () => {
    const hub = await listen((_, response) => {
      response.writeHead(200, { etag: '"x"', "x-linked-size": 10 }).end(Buffer.alloc(1000));
    });
    env.remote_host = hub.origin;
    const source = await open_source("org/name", { cache_dir: folder });
    await expect_error(
      source.open("model.safetensors"),
      "INVALID_CHECKPOINT",
      /more than the limit of 10 bytes/,
    );
    expect(await cached_files()).toEqual([]);
  });

  test("a download without room on the disk isn't started", async () => {
    const hub = await listen((_, response) => {
      response.writeHead(200, { etag: '"x"', "content-length": 15 * 2 ** 30 }).write("x");
    });
    env.remote_host = hub.origin;
    vi.resetModules();
    const statfs = async () => ({ blocks: 1, bavail: 1000, bsize: 1000 });
    vi.doMock("node:fs/promises", async (load) => ({ ...(await load<object>()), statfs }));
    try {
      const fresh = await import("../../ts/loading/source.ts");
      const { env: fresh_env } = await import("../../ts/env.ts");
      fresh_env.remote_host = hub.origin;
      const source = await fresh.open_source("org/name", { cache_dir: folder });
      await expect(source.open("model.safetensors")).rejects.toMatchObject({
        code: "IO",
        message: expect.stringMatching(/no room .* 16106127360 more bytes, but 1000000 are free/),
      });
    } finally {
      vi.doUnmock("node:fs/promises");
      vi.resetModules();
    }
    expect(await cached_files()).toEqual([]);
  });

  test("a shard can't replace the cache's metadata of another file", async () => {
    const hub = await listen((request, response) => {
      response
        .writeHead(200, { etag: '"x"' })
        .end(request.url?.endsWith("config.json") ? '{"a": 1}' : '{"url": "evil"}');
    });
    env.remote_host = hub.origin;
    const source = await open_source("org/name", { cache_dir: folder });
    await (await source.open("config.json"))?.close();
    const shards = [
      "config.json.meta.json",
      "config.json.free.x.incomplete",
      "config.json.free.x.incomplete.json",
    ];
    for (const name of shards) await (await source.open(name))?.close();
    const offline = await open_source("org/name", { cache_dir: folder, local_files_only: true });
    expect(await read_json(offline, "config.json")).toEqual({ a: 1 });
    for (const name of shards) expect(await read_json(offline, name)).toEqual({ url: "evil" });
  });
});

test.each([
  ["http://host/a/b.png", "http://host/a/b.png"],
  ["http://user:word@host/a.png", "http://host/a.png"],
  ["HTTP://user@host/a.png", "http://host/a.png"],
  ["http:user:word@host/a.png", "http://host/a.png"],
  ["https://host/a.png?sig=word#word", "https://host/a.png"],
  ["https://user:w%2Ford@host/a.png?sig=word", "https://host/a.png"],
  ["http://user:wo/rd@host/a.png?sig=word", "http://***@host/a.png"],
  ["http://user:word@ho st/a.png", "http://***@ho st/a.png"],
  ["http://host:port/a.png?sig=word", "http://host:port/a.png"],
  ["s3://key:word@bucket/a.png?sig=word", "s3://bucket/a.png"],
  ["data:image/png;base64,AAAABBBBCCCC", "data:image/png;base64,AA… (a data: URL)"],
  ["folder/a@b?.png", "folder/a@b?.png"],
  ["C:/folder/a@b.png", "C:/folder/a@b.png"],
  ["org/name", "org/name"],
])("%s is shown as %s", (address, expected) => {
  expect(show_url(address)).toBe(expected);
});

describe("a user and a password in a URL", () => {
  test("of an image are sent as a header, and not along a redirect to another origin", async () => {
    const other = await listen(serve_image);
    const host = await listen((request, response) => {
      if (request.url === "/moved.png") response.writeHead(302, { location: `${other.origin}/x.png` }).end();
      else serve_image(request, response);
    });
    const expected = `Basic ${Buffer.from(`mé:${SECRET}`).toString("base64")}`;
    await RawImage.read(`http://m%C3%A9:${ENCODED}@${host.host}/a.png`);
    await RawImage.read(`http://m%C3%A9:${ENCODED}@${host.host}/moved.png`);
    expect(host.requests.map(({ headers }) => headers.authorization)).toEqual([expected, expected]);
    expect(other.requests[0]?.headers.authorization).toBeUndefined();
  });

  test("of a model's URL likewise", async () => {
    const other = await listen(serve_model);
    const host = await listen((request, response) => {
      if (request.url === "/m/config.json") serve_model(request, response);
      else response.writeHead(302, { location: `${other.origin}${request.url}` }).end();
    });
    const source = await open_source(`http://me:${ENCODED}@${host.host}/m`, { cache_dir: folder });
    expect(source.name).toBe(`${host.origin}/m/`);
    for (const file of ["config.json", "preprocessor_config.json"]) await (await source.open(file))?.close();
    const expected = `Basic ${Buffer.from(`me:${SECRET}`).toString("base64")}`;
    expect(host.requests.map(({ headers }) => headers.authorization)).toEqual([expected, expected]);
    expect(other.requests[0]?.headers.authorization).toBeUndefined();
    for (const name of await cached_files()) {
      const path = (await readdir(folder, { recursive: true })).find((path) => path.endsWith(name)) as string;
      expect(await readFile(join(folder, path), "utf8")).not.toMatch(/s3cr/);
    }
  });

  test("of a redirect's target are not sent", async () => {
    const other = await listen(serve_model);
    const host = await listen((request, response) => {
      response.writeHead(302, { location: `http://me:word@${other.host}${request.url}` }).end();
    });
    const source = await open_source(`${host.origin}/m`, { cache_dir: folder });
    await (await source.open("config.json"))?.close();
    expect(other.requests.map(({ headers }) => headers.authorization)).toEqual([undefined]);
  });

  const ADDRESSES = (host: string) => [
    `http://me:${ENCODED}@${host}/gone.png?sig=${ENCODED}`,
    `http://me:s3cr/word@${host}/a.png?sig=${ENCODED}`,
    `http://me:s3cr@ho st/a.png`,
    `ftp://me:${ENCODED}@${host}/a.png?X-Amz-Signature=${ENCODED}`,
    `http://me:${ENCODED}@${host}/shard.tar?token=${ENCODED}`,
  ];

  test("are in no error, whatever is wrong", async () => {
    const host = await listen((_, response) => void response.writeHead(404).end());
    for (const address of ADDRESSES(host.host)) {
      for (const read of [RawImage, BuiltRawImage]) {
        const error = await read.read(address).then(
          () => expect.unreachable(),
          (reason: unknown) => reason as VitMsnError,
        );
        expect(error).toMatchObject({ name: "VitMsnError" });
        expect(said_by(error)).not.toMatch(/s3cr/);
      }
    }
  });

  test("are in nothing that the command line writes", async () => {
    const host = await listen((request, response) => {
      if (request.url?.startsWith("/ok.png")) serve_image(request, response);
      else response.writeHead(404).end();
    });
    const ok = `http://me:${ENCODED}@${host.host}/ok.png?id=7&sig=${ENCODED}&X-Amz-Signature=${ENCODED}`;
    const list = join(folder, "list.txt");
    await writeFile(list, [ok, ...ADDRESSES(host.host)].join("\n"));
    const output = join(folder, "out.jsonl");
    const header = `X-Key: ${ENCODED}`;
    const args = ["--retries", "0", "--header", header];
    const run = await vit_msn(["classify", ok, "--list", list, "--output", output, ...args]);
    expect(run.code).toBe(3);
    const printed = await vit_msn(["classify", ok, "--list", list, ...args]);
    const texts = [run.stderr, run.stdout, printed.stderr, printed.stdout];
    for (const name of await readdir(folder))
      if (name !== "list.txt") texts.push(await readFile(join(folder, name), "utf8"));
    expect(texts.length).toBeGreaterThan(6);
    for (const text of texts) expect(text).not.toMatch(/s3cr/);
    const rows = (await readFile(output, "utf8")).trim().split("\n");
    expect(JSON.parse(rows[0] as string).image).toBe(
      `${host.origin}/ok.png?id=7&sig=***&X-Amz-Signature=***`,
    );
    expect(host.requests[0]?.headers["x-key"]).toBe(ENCODED);
    const wrong = await vit_msn(["classify", ok, "--header", "s3cr"]);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toMatch(/--header must be "Name: value"/);
    expect(wrong.stderr).not.toMatch(/s3cr/);
  });
});

test("requests carry the package's name", async () => {
  const host = await listen(serve_image);
  await RawImage.read(`${host.origin}/a.png`);
  await RawImage.read(`${host.origin}/a.png`, { headers: { "User-Agent": "mine" } });
  expect(host.requests.map(({ headers }) => headers["user-agent"])).toEqual([
    expect.stringMatching(/^vit-msn\/\d/),
    "mine",
  ]);
});

test("a header with a line feed is refused by its name alone", async () => {
  const error = await expect_error(
    RawImage.read("http://127.0.0.1:9999/a.png", { headers: { "X-Key": "s3cr\nx: y" } }),
    "INVALID_ARGUMENT",
    /"X-Key"/,
  );
  expect(said_by(error)).not.toMatch(/s3cr/);
});

describe("an address that isn't a model", () => {
  test("a folder's path without ./ is taken for a repository, as the message explains", async () => {
    const hub = await listen((_, response) =>
      response.writeHead(401, { "x-error-code": "RepoNotFound" }).end(),
    );
    env.remote_host = hub.origin;
    const source = await open_source("models/shapes", { cache_dir: folder });
    const error = await expect_error(source.open("config.json"), "NOT_FOUND", /doesn't exist/);
    expect(error.message).toContain(`there is none at ${join(process.cwd(), "models/shapes")}`);
    expect(error.message).toMatch(/begin .* with ".\/"/);
  });

  test("a 403 of a host that isn't the hub isn't called gated", async () => {
    const host = await listen((_, response) => void response.writeHead(403).end());
    const source = await open_source(host.origin, { cache_dir: folder });
    const error = await expect_error(source.open("config.json"), "ACCESS_DENIED", /status 403/);
    expect(error.message).not.toMatch(/gated|HF_TOKEN/);
    env.remote_host = host.origin;
    await expect_error((await open_source("a/b", { cache_dir: folder })).open("x"), "ACCESS_DENIED", /gated/);
  });

  test.each(["s3://bucket/a.png", "gs://bucket/a.png", "hf://org/a.png", "ftp://host/a.png"])(
    "%s is no missing file",
    async (address) => {
      await expect_error(RawImage.read(address), "UNSUPPORTED", /URL scheme .*:\/\/ isn't supported/);
    },
  );
});

describe.skipIf(skipped(process.platform !== "linux", "only Linux heeds ulimit -v"))(
  "under a limit of virtual memory",
  () => {
    const run = async (kilobytes: number, command: string): Promise<string> => {
      const { execFile } = await import("node:child_process");
      const script = `ulimit -v ${kilobytes} && ${command} 2>&1`;
      return new Promise((resolve) =>
        execFile("bash", ["-c", script], { cwd: root }, (_, stdout) => resolve(stdout)),
      );
    };
    const classify = `"${process.execPath}" dist/cli.js classify "${IMAGE}" -k 1`;

    test("the error names the limit and a remedy that works", async () => {
      const refused = await run(4_000_000, classify);
      expect(refused).toMatch(
        /3\.8 GiB of address space \(ulimit -v.*NODE_OPTIONS=--disable-wasm-trap-handler.*OUT_OF_MEMORY/,
      );
      expect(await run(4_000_000, `NODE_OPTIONS=--disable-wasm-trap-handler ${classify}`)).toMatch(/Bag/);
    });

    test("one engine's address space is enough for local files", async () => {
      expect(await run(12_500_000, classify)).toMatch(/Bag/);
    });

    test("a download is refused in time, where Node's fetch would end the process", async () => {
      const refused = await run(4_000_000, `HF_ENDPOINT=http://127.0.0.1:9 ${classify} --model org/name`);
      expect(refused).toMatch(/Node's fetch can't start.*--disable-wasm-trap-handler.*OUT_OF_MEMORY/);
      expect(refused).not.toMatch(/undici/);
    });
  },
);

test("the cached file of a URL with a signature doesn't hold it", async () => {
  const host = await listen(serve_model);
  const load = async () => {
    const source = await open_source(`${host.origin}/m/?sig=${ENCODED}`, { cache_dir: folder });
    const file = await source.open("config.json");
    await file?.close();
    return file?.name;
  };
  expect([await load(), await load()].join()).not.toMatch(/s3cr/);
  expect(host.requests[1]?.headers.range).toBe("bytes=0-0");
  for (const path of await readdir(folder, { recursive: true })) {
    if ((await stat(join(folder, path))).isFile())
      expect(await readFile(join(folder, path), "utf8")).not.toMatch(/s3cr/);
  }
});
