// Clients of `vit-msn serve` that do wrong in every way, and one that does right. Those that wait do so until the server
// ends their connection, or until their time is over.
import { once } from "node:events";
import { connect } from "node:net";
import { gzipSync } from "node:zlib";

/** @typedef {import("node:net").Socket} Socket */
/** @typedef {{ port: number, image: Buffer, patience_ms: number }} Target */

const HOST = "Host: localhost\r\n";

/** @param {Buffer | string} body */
function post(body, type = "image/png", target = "/embed") {
  const bytes = Buffer.from(/** @type {Buffer} */ (body));
  const head = `POST ${target} HTTP/1.1\r\n${HOST}Content-Type: ${type}\r\nContent-Length: ${bytes.length}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), bytes]);
}

/** @param {Target} target @param {(socket: Socket) => Promise<void> | void} act */
async function connected({ port, patience_ms }, act) {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  const closed = new Promise((resolve) => socket.once("close", resolve));
  const patience = setTimeout(() => socket.destroy(), patience_ms);
  try {
    await Promise.race([once(socket, "connect"), closed]);
    if (!socket.destroyed) await act(socket);
    await closed;
  } catch {
    // The server may refuse or end it at any time.
  } finally {
    clearTimeout(patience);
    socket.destroy();
  }
}

/** Sends all of it, reads, and waits for the end. @param {(target: Target) => Buffer | string} bytes */
const sending = (bytes) => (/** @type {Target} */ target) =>
  connected(target, (socket) => {
    socket.resume();
    socket.end(bytes(target));
  });

/** Sends all of it and goes at once. @param {(target: Target) => Buffer | string} bytes */
const leaving = (bytes) => (/** @type {Target} */ target) =>
  connected(target, (socket) => {
    socket.write(bytes(target), () => socket.resetAndDestroy());
  });

/** @param {Target} target @param {Iterable<Buffer | string>} pieces */
async function dawdle(target, pieces) {
  await connected(target, async (socket) => {
    socket.resume();
    for (const piece of pieces) {
      if (socket.destroyed) return;
      socket.write(piece);
      await new Promise((resolve) => setTimeout(resolve, target.patience_ms / 20));
    }
  });
}

/** @param {string} disposition @param {Buffer | string} body */
const form = (disposition, body) =>
  Buffer.concat([
    Buffer.from(`--b\r\nContent-Disposition: ${disposition}\r\n\r\n`),
    Buffer.from(/** @type {Buffer} */ (body)),
    Buffer.from("\r\n--b--\r\n"),
  ]);
const FORM = "multipart/form-data; boundary=b";
const CHUNKED = `POST /embed HTTP/1.1\r\n${HOST}Transfer-Encoding: chunked\r\n\r\n`;
const METRICS = `GET /metrics HTTP/1.1\r\n${HOST}\r\n`;

/** By what they do. @type {Readonly<Record<string, (target: Target) => Promise<void>>>} */
export const bad_clients = {
  silence: (target) => dawdle(target, []),
  slow_headers: (target) => dawdle(target, `POST /embed HTTP/1.1\r\n${HOST}X: ${"x".repeat(99)}`),
  slow_body: (target) => dawdle(target, [post(target.image).subarray(0, 90), ..."a byte and another byte"]),
  half_body: sending(({ image }) => post(image).subarray(0, -9)),
  half_body_and_gone: leaving(({ image }) => post(image).subarray(0, -9)),
  gone: leaving(({ image }) => post(image)),
  pipelined: sending(({ image }) => Buffer.concat(Array(20).fill(post(image)))),
  pipelined_and_gone: leaving(({ image }) => Buffer.concat(Array(50).fill(post(image)))),
  pipelined_metrics_and_gone: leaving(() => METRICS.repeat(500)),
  unread: (target) =>
    connected(target, (socket) => {
      socket.pause();
      socket.write(METRICS.repeat(500));
    }),
  huge_headers: sending(() => `GET /health HTTP/1.1\r\n${HOST}X: ${"x".repeat(100_000)}\r\n\r\n`),
  garbage: sending(() => Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * i * 31) % 256))),
  garbage_behind: sending(({ image }) => Buffer.concat([post(image), Buffer.from("garbage\r\n\r\n")])),
  two_lengths: sending(
    () => `POST /embed HTTP/1.1\r\n${HOST}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab`,
  ),
  bad_chunks: sending(() => `${CHUNKED}5\r\nhello\r\nzz\r\n`),
  tiny_chunks: sending(() => `${CHUNKED}${"1;e=1\r\nx\r\n".repeat(5000)}0\r\nT: 1\r\n\r\n`),
  too_large: sending(() => post(Buffer.alloc(3_000_000))),
  bomb: sending(() => {
    const bomb = gzipSync(Buffer.alloc(20_000_000));
    const head = `POST /embed HTTP/1.1\r\n${HOST}Content-Encoding: gzip\r\nContent-Length: ${bomb.length}\r\n\r\n`;
    return Buffer.concat([Buffer.from(head), bomb]);
  }),
  form_without_end: sending(({ image }) =>
    post(form('form-data; filename="a"', image).subarray(0, -9), FORM),
  ),
  form_of_parts: sending(() =>
    post(`--b\r\nContent-Disposition: form-data; filename=a\r\n\r\n\r\n`.repeat(9000), FORM),
  ),
  form_of_text: sending(() => post(form("form-data; name=a", "text"), FORM)),
  no_image: sending(() => post("<html></html>")),
  damaged_image: sending(({ image }) => post(image.subarray(0, image.length / 2))),
  deep_json: sending(() => post("[".repeat(100_000), "application/json")),
  a_url: sending(() => post('{"url":"http://127.0.0.1/"}', "application/json")),
  other_host: sending(() => "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
};

/** A good request in one of several forms; status and text of its answer. @param {Target} target @param {number} turn */
export async function ask(target, turn) {
  const { port, image } = target;
  const file = new Blob([/** @type {Buffer<ArrayBuffer>} */ (image)], { type: "image/png" });
  const data = new FormData();
  data.set("image", file, "日本.png");
  /** @type {(RequestInit & { duplex?: "half" })[]} */
  const forms = [
    { body: file },
    { body: data },
    { body: file.stream(), duplex: "half" },
    {
      body: JSON.stringify({ inputs: image.toString("base64") }),
      headers: { "content-type": "application/json" },
    },
    { body: gzipSync(image), headers: { "content-encoding": "gzip" } },
  ];
  const path = turn % 2 === 0 ? "/embed" : "/classify";
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    method: "POST",
    ...forms[turn % forms.length],
  });
  return { path, status: response.status, text: await response.text() };
}
