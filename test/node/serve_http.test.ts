import { brotliCompressSync, deflateRawSync, deflateSync, gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  BAG,
  chunked,
  exchange,
  type RawAnswer,
  RawClient,
  type RunningApp,
  request_of,
  start_app,
} from "../support/http_app.ts";

// What clients of every kind send to `vit-msn serve`, byte by byte. Tasks are stand-ins that answer with an image's size.

const SIZE = '{"embedding":[28,28]}';
const HEAD = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n";
const CHUNKED = `${HEAD}Transfer-Encoding: chunked\r\n\r\n`;

let running: RunningApp;
beforeAll(async () => {
  running = await start_app();
});
afterAll(() => running.server.close(0));

const send = (...pieces: (string | Uint8Array)[]) => exchange(running.port, ...pieces);
const brief = (answers: readonly RawAnswer[]) =>
  answers.map(({ status, body }) => (status < 400 ? [status, body] : [status, JSON.parse(body).error.code]));

describe("framing", () => {
  test.each<[string, (string | Uint8Array)[]]>([
    ["a body of known length", [request_of("/embed", BAG)]],
    ["one chunk", [CHUNKED, chunked(BAG, BAG.length)]],
    ["a byte a chunk", [CHUNKED, chunked(BAG, 1)]],
    ["extensions and trailers", [CHUNKED, chunked(BAG, 100, ';a=1;b="x y"', "Checksum: 1\r\nX: 2\r\n")]],
    ["HTTP/1.0 without Host", [`POST /embed HTTP/1.0\r\nContent-Length: ${BAG.length}\r\n\r\n`, BAG]],
    ["an absolute target", [request_of("http://localhost/embed", BAG)]],
    ["slashes at the end", [request_of("/embed//", BAG)]],
    [
      "an offer of HTTP/2",
      [request_of("/embed", BAG, { connection: "upgrade, HTTP2-Settings", upgrade: "h2c" })],
    ],
    ["empty lines first", ["\r\n\r\n", request_of("/embed", BAG)]],
    ["binary/octet-stream", [request_of("/embed", BAG, { "content-type": "binary/octet-stream" })]],
    ["no type", [request_of("/embed", BAG, {})]],
  ])("%s, then the client's end", async (_name, pieces) => {
    expect(brief(await send(...pieces))).toEqual([[200, SIZE]]);
  });

  test.each<[string, (string | Uint8Array)[], number, string]>([
    ["no body and no length", [`${HEAD}\r\n`], 400, "INVALID_IMAGE"],
    ["a length of 0", [`${HEAD}Content-Length: 0\r\n\r\n`], 400, "INVALID_IMAGE"],
    ["no chunk but the last", [CHUNKED, "0\r\n\r\n"], 400, "INVALID_IMAGE"],
    [
      "both lengths",
      [`${HEAD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
      400,
      "BAD_REQUEST",
    ],
    ["two lengths", [`${HEAD}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`], 400, "BAD_REQUEST"],
    ["a length that is no number", [`${HEAD}Content-Length: -1\r\n\r\n`], 400, "BAD_REQUEST"],
    ["an unknown framing", [`${HEAD}Transfer-Encoding: chunked, zip\r\n\r\n0\r\n\r\n`], 400, "BAD_REQUEST"],
    ["a chunk size that is no number", [CHUNKED, "zz\r\nabc\r\n0\r\n\r\n"], 400, "BAD_REQUEST"],
    ["a chunk size that overflows", [CHUNKED, "fffffffffffffffff\r\nabc\r\n"], 400, "BAD_REQUEST"],
    ["a chunk longer than its size", [CHUNKED, "2\r\nabcd\r\n0\r\n\r\n"], 400, "BAD_REQUEST"],
    ["extensions without end", [CHUNKED, `1;${"e".repeat(20_000)}\r\na\r\n`], 413, "PAYLOAD_TOO_LARGE"],
    ["a body that breaks off", [request_of("/embed", BAG).subarray(0, -9)], 400, "BAD_REQUEST"],
    ["chunks that break off", [CHUNKED, chunked(BAG, 50).subarray(0, -9)], 400, "BAD_REQUEST"],
    ["headers that break off", [HEAD], 400, "BAD_REQUEST"],
    ["headers without end", [`${HEAD}X: ${"x".repeat(20_000)}\r\n\r\n`], 431, "HEADERS_TOO_LARGE"],
    ["no Host", [`POST /embed HTTP/1.1\r\nContent-Length: 0\r\n\r\n`], 400, "BAD_REQUEST"],
    ["a TLS handshake", [Buffer.from("1603010200010001fc0303", "hex")], 400, "BAD_REQUEST"],
    ["no HTTP at all", ["hello?\r\n\r\n"], 400, "BAD_REQUEST"],
    ["an unknown method", ["FETCH / HTTP/1.1\r\nHost: localhost\r\n\r\n"], 400, "BAD_REQUEST"],
    ["a strange target", ["GET //:% HTTP/1.1\r\nHost: localhost\r\n\r\n"], 404, "NOT_FOUND"],
  ])("%s is refused", async (_name, pieces, status, code) => {
    expect(brief(await send(...pieces))).toEqual([[status, code]]);
  });

  test("a client that expects 100 Continue gets it only if its body is wanted", async () => {
    const { port } = running;
    const wanted = new RawClient(port).write(
      `${HEAD}Expect: 100-continue\r\nContent-Length: ${BAG.length}\r\n\r\n`,
    );
    expect((await wanted.answers(1))[0]?.status).toBe(100);
    wanted.write(BAG).socket.end();
    expect((await wanted.all()).map(({ status }) => status)).toEqual([100, 200]);
    const large = new RawClient(port).write(`${HEAD}Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n`);
    expect((await large.all()).map(({ status }) => status)).toEqual([413]);
    const [other] = await new RawClient(port)
      .write(`${HEAD}Expect: tea\r\nContent-Length: 0\r\n\r\n`)
      .answers(1);
    expect(other?.status).toBe(417);
  });

  test("a client that sends all of a body that is too large can read why it is refused", async () => {
    const large = Buffer.alloc(5_000_000);
    for (const pieces of [[request_of("/embed", large)], [CHUNKED, chunked(large, 60_000)]]) {
      const client = new RawClient(running.port).write(...pieces);
      expect(brief(await client.all())).toEqual([[413, "PAYLOAD_TOO_LARGE"]]);
    }
  });

  test("HEAD has the headers of GET alone", async () => {
    const response = await fetch(`${running.url}/health`, { method: "HEAD" });
    expect([response.status, response.headers.get("content-type")]).toEqual([200, "application/json"]);
  });
});

describe("pipelined requests", () => {
  test("are answered in order, whatever they are", async () => {
    const get = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const answers = await send(
      request_of("/embed", BAG),
      get,
      CHUNKED,
      chunked(BAG, 100),
      request_of("/paint", "x"),
    );
    expect(brief(answers)).toEqual([
      [200, SIZE],
      [200, '{"status":"ok"}'],
      [200, SIZE],
      [404, "NOT_FOUND"],
    ]);
  });

  test("however many they are", async () => {
    const answers = await send(
      Buffer.concat(Array(3000).fill(request_of("/paint", "x"))),
      request_of("/embed", BAG),
    );
    expect(answers).toHaveLength(3001);
    expect(brief(answers.slice(-1))).toEqual([[200, SIZE]]);
  });

  test("those before bytes that aren't HTTP are answered", async () => {
    const send_open = (...pieces: (string | Uint8Array)[]) =>
      new RawClient(running.port).write(...pieces).all();
    const one = request_of("/embed", BAG);
    expect(brief(await send_open(one, one, "nonsense\r\n\r\n"))).toEqual([
      [200, SIZE],
      [200, SIZE],
      [400, "BAD_REQUEST"],
    ]);
    expect(brief(await send_open(one, CHUNKED, "zz\r\n"))).toEqual([
      [200, SIZE],
      [400, "BAD_REQUEST"],
    ]);
  });
});

const BOUNDARY = "7427efb8-6ce7-4740";

function form(...parts: [headers: string, body: string | Uint8Array][]): Buffer {
  const pieces = parts.flatMap(([headers, body]) => [`--${BOUNDARY}\r\n${headers}\r\n\r\n`, body, "\r\n"]);
  return Buffer.concat([...pieces, `--${BOUNDARY}--\r\n`].map((piece) => Buffer.from(piece as Uint8Array)));
}

async function post_form(body: Buffer, type = `multipart/form-data; boundary="${BOUNDARY}"`) {
  return brief(await send(request_of("/embed", body, { "content-type": type })))[0];
}

describe("forms", () => {
  const CD = "Content-Disposition: form-data";
  test.each<[string, Buffer]>([
    [
      ".NET's",
      form([`Content-Type: image/png\r\n${CD}; name=image; filename=a.png; filename*=utf-8''a.png`, BAG]),
    ],
    ["names twice", form([`${CD}; name="image"; filename="a.png"; filename*=utf-8''a.png`, BAG])],
    ["encoded names alone", form([`${CD}; name="image"; filename*=utf-8''%E6%97%A5.png`, BAG])],
    ["names in an unknown charset", form([`${CD}; name="image"; filename*=klingon''%ff.png`, BAG])],
    ["names in raw UTF-8", form([`${CD}; name="image"; filename="日本.png"`, BAG])],
    ["quotes in names", form([`${CD}; name="image"; filename="a\\"b;c.png"`, BAG])],
    ["spaces around", form([`${CD} ; name = "image" ; filename = "a.png"`, BAG])],
    ["folded headers", form([`${CD};\r\n name="image";\r\n filename="a.png"`, BAG])],
    ["lower case", form([`content-disposition:form-data;filename="a.png"`, BAG])],
    ["a type and no file name", form([`${CD}; name="image"\r\nContent-Type: image/png`, BAG])],
    [
      "base64",
      form([
        `${CD}; name="image"; filename="a"\r\nContent-Transfer-Encoding: base64`,
        BAG.toString("base64"),
      ]),
    ],
    ["text beside", form([`${CD}; name="note"`, "hello"], [`${CD}; name="image"; filename="a"`, BAG])],
    [
      "an input left empty",
      form([`${CD}; name="b"; filename=""`, ""], [`${CD}; name="a"; filename="a"`, BAG]),
    ],
    [
      "names of object properties",
      form([`__proto__: x\r\n${CD}; name="__proto__"; filename="constructor"`, BAG]),
    ],
  ])("with %s", async (_name, body) => {
    expect(await post_form(body)).toEqual([200, SIZE]);
  });

  const image = form([`${CD}; name="image"; filename="a"`, BAG]);
  test.each<[string, string]>([
    ["without quotes", `multipart/form-data; boundary=${BOUNDARY}`],
    ["in upper case, behind others", `Multipart/Form-Data; charset=utf-8; BOUNDARY=${BOUNDARY}`],
  ])("with the boundary %s", async (_name, type) => {
    expect(await post_form(image, type)).toEqual([200, SIZE]);
  });

  test.each<[string, Buffer, string?]>([
    ["33 files", form(...Array<[string, Buffer]>(33).fill([`${CD}; filename="a"`, BAG]))],
    ["text alone", form([`${CD}; name="image"`, "hello"])],
    ["no part", form()],
    ["parts of another kind", form([`Content-Disposition: attachment; filename="a"`, BAG], ["X: 1", BAG])],
    ["no end", image.subarray(0, -6)],
    ["another boundary", image, "multipart/form-data; boundary=another"],
    ["no boundary", image, "multipart/form-data"],
    ["an empty boundary", image, "multipart/form-data; boundary="],
    ["a boundary too long", image, `multipart/form-data; boundary=${"b".repeat(71)}`],
    ["a thousand parts", form(...Array<[string, string]>(1000).fill([`${CD}; name="a"`, ""]))],
    ["nothing", Buffer.alloc(0)],
  ])("with %s are refused", async (_name, body, type) => {
    expect(await post_form(body, type)).toEqual([400, "INVALID_ARGUMENT"]);
  });

  test.each([
    ["text", ""],
    ["JSON", "\r\nContent-Type: application/json"],
    ["text of a charset", "\r\nContent-Type: text/plain; charset=utf-8"],
  ])("may ask for top_k as %s", async (_name, type) => {
    const body = form([`${CD}; name="top_k"${type}`, "1"], [`${CD}; name="image"; filename="a"`, BAG]);
    const headers = { "content-type": `multipart/form-data; boundary=${BOUNDARY}` };
    const [answer] = await send(request_of("/classify", body, headers));
    expect(JSON.parse(answer?.body ?? "").results).toEqual([{ label: "Bag", score: 0.5 }]);
  });
});

describe("JSON", () => {
  const base64 = BAG.toString("base64");
  const post_json = async (value: unknown, type = "application/json") =>
    brief(
      await send(
        request_of("/embed", typeof value === "string" ? value : JSON.stringify(value), {
          "content-type": type,
        }),
      ),
    )[0];

  test.each<[string, unknown]>([
    ["image", { image: base64 }],
    ["inputs", { inputs: base64 }],
    ["a data URL", { inputs: `data:image/png;base64,${base64}` }],
    ["a data URL with parameters", { image: `DATA:image/png;name=a.png; base64,${base64}` }],
    ["line breaks", { image: base64.replace(/.{76}/g, "$&\r\n") }],
    ["the URL-safe alphabet, without padding", { image: BAG.toString("base64url") }],
    ["a byte order mark", `\uFEFF${JSON.stringify({ image: base64 })}`],
  ])("with %s", async (_name, value) => {
    expect(await post_json(value)).toEqual([200, SIZE]);
    expect(await post_json(value, "application/vnd.api+json; charset=utf-8")).toEqual([200, SIZE]);
  });

  test.each<[string, unknown, number, string]>([
    ["a URL, unless allowed", { url: "http://127.0.0.1/a.png" }, 403, "ACCESS_DENIED"],
    ["a URL as inputs, unless allowed", { inputs: "http://127.0.0.1/a.png" }, 403, "ACCESS_DENIED"],
    ["a path", { image: "/etc/passwd" }, 400, "INVALID_IMAGE"],
    ["a file URL", { image: "file:///etc/passwd" }, 400, "INVALID_ARGUMENT"],
    ["text", { image: "hello there!" }, 400, "INVALID_ARGUMENT"],
    ["an empty string", { image: "" }, 400, "INVALID_ARGUMENT"],
    ["an empty list", { inputs: [] }, 400, "INVALID_ARGUMENT"],
    ["33 images", { inputs: Array(33).fill(base64) }, 400, "INVALID_ARGUMENT"],
    ["a list in a list", { inputs: [[base64]] }, 400, "INVALID_ARGUMENT"],
    ["a list with null", { inputs: [base64, null] }, 400, "INVALID_ARGUMENT"],
    ["a list with text that is no image", { inputs: [base64, "aGVsbG8="] }, 400, "INVALID_IMAGE"],
    ["two images", { image: base64, inputs: base64 }, 400, "INVALID_ARGUMENT"],
    ["an unknown key", { image: base64, topk: 1 }, 400, "INVALID_ARGUMENT"],
    [
      "an unknown parameter",
      { image: base64, parameters: { function_to_apply: "none" } },
      400,
      "INVALID_ARGUMENT",
    ],
    ["a top_k of 0", { image: base64, top_k: 0 }, 400, "INVALID_ARGUMENT"],
    [
      "a parameter that another value overrides",
      { image: base64, top_k: 1, parameters: { top_k: 1.5 } },
      400,
      "INVALID_ARGUMENT",
    ],
    ["another kind of value", "[1]", 400, "INVALID_ARGUMENT"],
    ["null", "null", 400, "INVALID_ARGUMENT"],
    ["a prototype", '{"__proto__": {"image": "aGk="}}', 400, "INVALID_ARGUMENT"],
    ["depth", "[".repeat(50_000), 400, "INVALID_ARGUMENT"],
    ["no JSON", "image=1", 400, "INVALID_ARGUMENT"],
    ["nothing", "", 400, "INVALID_ARGUMENT"],
  ])("with %s is refused", async (_name, value, status, code) => {
    expect(await post_json(value)).toEqual([status, code]);
  });

  test("the refusal of a URL names the option", async () => {
    const [answer] = await send(
      request_of("/embed", '{"url":"http://a.example/"}', { "content-type": "application/json" }),
    );
    expect(answer?.body).toContain("--allow-url-host");
  });

  test.each<[object, string]>([
    [{ top_k: 1 }, "/classify"],
    [{ parameters: { top_k: 1 } }, "/classify"],
    [{ top_k: 2 }, "/classify?top_k=1"],
    [{ parameters: null, top_k: "1" }, "/classify"],
  ])("top_k in %j of %s", async (asked, target) => {
    const body = JSON.stringify({ inputs: base64, ...asked });
    const [answer] = await send(request_of(target, body, { "content-type": "application/json" }));
    if (answer?.status === 200) expect(JSON.parse(answer.body).results).toHaveLength(1);
    else expect(answer?.status).toBe(400);
  });
});

describe("compressed bodies", () => {
  const post_encoded = async (encoding: string, body: Uint8Array) =>
    brief(await send(request_of("/embed", body, { "content-encoding": encoding })))[0];

  test.each<[string, (bytes: Uint8Array) => Uint8Array]>([
    ["gzip", gzipSync],
    ["X-GZIP", gzipSync],
    ["deflate", deflateSync],
    ["deflate", deflateRawSync],
    ["br", brotliCompressSync],
    ["identity", (bytes) => bytes],
  ])("%s", async (encoding, compress) => {
    expect(await post_encoded(encoding, compress(BAG))).toEqual([200, SIZE]);
  });

  test("a form and JSON, compressed", async () => {
    const json = gzipSync(JSON.stringify({ image: BAG.toString("base64") }));
    const headers = { "content-encoding": "gzip", "content-type": "application/json" };
    expect(brief(await send(request_of("/embed", json, headers)))).toEqual([[200, SIZE]]);
  });

  test.each<[string, string, Uint8Array, number, string]>([
    ["a bomb", "gzip", gzipSync(Buffer.alloc(50_000_000)), 413, "PAYLOAD_TOO_LARGE"],
    ["a bomb of brotli", "br", brotliCompressSync(Buffer.alloc(5_000_000)), 413, "PAYLOAD_TOO_LARGE"],
    ["other data", "gzip", BAG, 400, "INVALID_ARGUMENT"],
    ["half of it", "gzip", gzipSync(BAG).subarray(0, -20), 400, "INVALID_ARGUMENT"],
    ["nothing", "gzip", Buffer.alloc(0), 400, "INVALID_IMAGE"],
    ["an unknown encoding", "constructor", BAG, 415, "UNSUPPORTED_MEDIA_TYPE"],
    ["two encodings", "gzip, br", BAG, 415, "UNSUPPORTED_MEDIA_TYPE"],
  ])("%s is refused", async (_name, encoding, body, status, code) => {
    expect(await post_encoded(encoding, body)).toEqual([status, code]);
  });
});

describe("hosts and origins that it answers", () => {
  const health = async (port: number, host: string) =>
    (await exchange(port, `GET /health HTTP/1.1\r\n${host}\r\n\r\n`))[0]?.status;

  test("at a loopback address only names of this machine, and allowed ones", async () => {
    const { port } = running;
    for (const host of [
      "localhost",
      "LOCALHOST:80",
      "app.localhost",
      "127.0.0.1:8080",
      "127.1.2.3",
      "[::1]:80",
      "localhost.",
      "model-server:80",
      "",
    ])
      expect([host, await health(port, `Host: ${host}`)]).toEqual([host, 200]);
    for (const host of [
      "evil.example",
      "evil.example:80",
      "127.0.0.1.evil.example",
      "localhost.evil.example",
      "10.0.0.1",
      "[2001:db8::1]:80",
      "evil.example.",
    ])
      expect([host, await health(port, `Host: ${host}`)]).toEqual([host, 421]);
    expect(await health(port, "Host: localhost\r\nHost: evil.example")).toBeOneOf([400, 421]);
    const named = await start_app({ allowed_hosts: ["Models.Example:443"] });
    expect(await health(named.port, "Host: models.example")).toBe(200);
    expect(await health(named.port, "Host: evil.example")).toBe(421);
    const open = await start_app({ host: "0.0.0.0" });
    expect(await health(open.port, "Host: models.example")).toBe(200);
    const closed = await start_app({ host: "0.0.0.0", allowed_hosts: ["models.example"] });
    expect(await health(closed.port, "Host: evil.example")).toBe(421);
    for (const { server } of [named, open, closed]) await server.close(0);
  });

  test("pages of other origins, where they are allowed", async () => {
    const origin = "http://localhost:3000";
    const preflight = {
      method: "OPTIONS",
      headers: {
        origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-id",
      },
    };
    const closed = await fetch(`${running.url}/classify`, preflight);
    expect([closed.status, closed.headers.get("allow")]).toEqual([204, "POST, OPTIONS"]);
    expect([...closed.headers.keys()].filter((name) => name.startsWith("access-control"))).toEqual([]);

    const named = await start_app({ cors: [origin, "https://a.example"] });
    const asked = await fetch(`${named.url}/classify`, preflight);
    expect(asked.status).toBe(204);
    expect(Object.fromEntries(asked.headers)).toMatchObject({
      "access-control-allow-origin": origin,
      "access-control-allow-methods": "POST, OPTIONS",
      "access-control-allow-headers": "content-type,x-id",
      vary: "origin",
    });
    for (const [target, body] of [
      ["/embed", BAG],
      ["/embed", "x"],
      ["/paint", "x"],
    ] as const) {
      const answer = await fetch(named.url + target, { method: "POST", body, headers: { origin } });
      expect(answer.headers.get("access-control-allow-origin")).toBe(origin);
    }
    const other = await fetch(`${named.url}/health`, { headers: { origin: "https://evil.example" } });
    expect([other.headers.get("access-control-allow-origin"), other.headers.get("vary")]).toEqual([
      null,
      "origin",
    ]);

    const any = await start_app({ cors: ["*"] });
    const free = await fetch(`${any.url}/health`, { headers: { origin: "https://evil.example" } });
    expect(free.headers.get("access-control-allow-origin")).toBe("*");
    for (const { server } of [named, any]) await server.close(0);
  });

  test.each([
    ["/classify?topk=1", "takes top_k"],
    ["/classify?top_k=1&k=2", "takes top_k"],
    ["/embed?top_k=1", "takes none"],
  ])("%s names the known parameters", async (target, message) => {
    const [answer] = await send(request_of(target, BAG));
    expect([answer?.status, JSON.parse(answer?.body ?? "").error.message]).toEqual([
      400,
      expect.stringContaining(message),
    ]);
  });
});
