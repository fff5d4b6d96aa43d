import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  BAG,
  chunked,
  exchange,
  RawClient,
  type RunningApp,
  request_of,
  start_app,
} from "../support/http_app.ts";

// Requests that are wrong at random: each is answered or its connection ended, never by a fault of the server.

/** More with FUZZ_RUNS=100000. */
const numRuns = Number(process.env.FUZZ_RUNS ?? 300);

/** All that a client can bring about. */
const STATUSES = [100, 200, 204, 400, 403, 404, 405, 408, 413, 415, 417, 421, 429, 431];
const SIZE = '{"embedding":[28,28]}';

let running: RunningApp;
beforeAll(async () => {
  running = await start_app({ cors: ["http://a.example"] });
});
afterAll(() => running.server.close(0));

/** Sends it, and checks all answers; then a good request must be answered as ever. */
async function check(bytes: Uint8Array): Promise<void> {
  const client = new RawClient(running.port).write(bytes);
  client.socket.end();
  const text = await client.text();
  // Answers to HEAD have no body where others have one, so only their first lines tell them apart.
  const statuses = [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status));
  expect(STATUSES).toEqual(expect.arrayContaining(statuses));
  expect(text === "" || text.startsWith("HTTP/1.1 ")).toBe(true);
  expect((await exchange(running.port, request_of("/embed", BAG)))[0]?.body).toBe(SIZE);
  expect(running.log).toEqual([]);
}

const text = (max: number) => fc.string({ maxLength: max, unit: "binary" });
const one_of = (...values: string[]) => fc.oneof(fc.constantFrom(...values), text(20));

/** Parts of a request's head that mean something somewhere. */
const header = fc.tuple(
  one_of(
    "Host",
    "Content-Type",
    "Content-Length",
    "Transfer-Encoding",
    "Content-Encoding",
    "Expect",
    "Connection",
    "Upgrade",
    "Origin",
    "__proto__",
    "Trailer",
  ),
  one_of(
    "localhost",
    "evil.example",
    "image/png",
    "application/json",
    'multipart/form-data; boundary="b"',
    "multipart/form-data; boundary=b",
    "chunked",
    "gzip",
    "deflate",
    "br",
    "identity",
    "100-continue",
    "close",
    "keep-alive",
    "upgrade",
    "h2c",
    "http://a.example",
    "0",
    "3",
    "300",
    "-1",
    "1e3",
    "99999999999999999999",
  ),
);
const method = one_of("POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "PRI");
const target = one_of(
  "/embed",
  "/classify",
  "/classify?top_k=2",
  "/classify?top_k=",
  "/classify?%ff=1",
  "/embed/",
  "//",
  "*",
  "/health",
  "/ready",
  "/metrics",
  "http://localhost/embed",
  "/%2e%2e/",
  "?top_k=1",
);
const version = one_of("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9");

const part = fc
  .tuple(
    one_of(
      'form-data; name="image"; filename="a"',
      "form-data; name=image",
      "form-data; name=top_k",
      "form-data; filename*=utf-8''%ff",
      "attachment",
      'form-data; name="a"; filename="',
    ),
    one_of("Content-Type: image/png", "Content-Transfer-Encoding: base64", "constructor: x", ""),
    one_of("1", "x", ""),
  )
  .map(
    ([disposition, other, value]) =>
      `--b\r\nContent-Disposition: ${disposition}\r\n${other}\r\n\r\n${value}\r\n`,
  );

const body = fc.oneof(
  fc.constant(BAG),
  fc.constant(gzipSync(BAG)),
  fc.constant(chunked(BAG, 50)),
  fc.constant(Buffer.from(JSON.stringify({ image: BAG.toString("base64") }))),
  fc.json().map((json) => Buffer.from(json)),
  fc.array(part, { maxLength: 4 }).map((parts) => Buffer.from(`${parts.join("")}--b--\r\n`)),
  fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
);

const request = fc
  .record({
    method,
    target,
    version,
    headers: fc.array(header, { maxLength: 5 }),
    body,
    framing: fc.constantFrom("length", "chunked", "none"),
  })
  .map(({ method, target, version, headers, body, framing }) => {
    const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join("");
    const length = framing === "length" ? `Content-Length: ${body.length}\r\n` : "";
    const chunks = framing === "chunked" ? "Transfer-Encoding: chunked\r\n" : "";
    const head = `${method} ${target} ${version}\r\nHost: localhost\r\n${lines}${length}${chunks}\r\n`;
    return Buffer.concat([Buffer.from(head, "latin1"), framing === "chunked" ? chunked(body, 40) : body]);
  });

test("requests of random parts, one after the other", async () => {
  const requests = fc.array(request, { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(requests, (all) => check(Buffer.concat(all))),
    { numRuns },
  );
}, 600_000);

const CD = "Content-Disposition: form-data";
const sound: readonly Buffer[] = [
  request_of("/embed", BAG),
  Buffer.concat([
    Buffer.from("POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"),
    chunked(BAG, 30, ";a=b", "T: 1\r\n"),
  ]),
  request_of("/embed", JSON.stringify({ inputs: BAG.toString("base64") }), {
    "content-type": "application/json",
  }),
  request_of(
    "/embed",
    Buffer.concat([
      Buffer.from(`--b\r\n${CD}; name=image; filename="a"\r\n\r\n`),
      BAG,
      Buffer.from("\r\n--b--\r\n"),
    ]),
    { "content-type": "multipart/form-data; boundary=b" },
  ),
  request_of("/embed", gzipSync(BAG), { "content-encoding": "gzip" }),
];

test("valid requests with bytes changed, deleted or inserted", async () => {
  const change = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    cut: fc.nat({ max: 9 }),
    put: fc.uint8Array({ maxLength: 9 }),
  });
  const mutated = fc
    .tuple(fc.constantFrom(...sound), fc.array(change, { minLength: 1, maxLength: 4 }))
    .map(([bytes, changes]) =>
      changes.reduce((now, { at, cut, put }) => {
        const place = Math.floor(at * now.length);
        return Buffer.concat([now.subarray(0, place), put, now.subarray(place + cut)]);
      }, bytes),
    );
  await fc.assert(fc.asyncProperty(mutated, check), { numRuns });
}, 600_000);

test("random bytes", async () => {
  await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 2000 }), check), { numRuns: numRuns / 3 });
}, 600_000);
