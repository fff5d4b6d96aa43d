import { exchange, type RunningApp, start_app } from "../../support/http_app.ts";

export const dictionary = [
  "POST /embed HTTP/1.1\r\nHost: localhost\r\n",
  "POST /classify?top_k=2 HTTP/1.1\r\nHost: localhost\r\n",
  "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
  "Content-Length: 5\r\n",
  "Transfer-Encoding: chunked\r\n",
  "Content-Type: multipart/form-data; boundary=x\r\n",
  "Content-Type: application/json\r\n",
  "Content-Type: image/png\r\n",
  "Content-Encoding: gzip\r\n",
  "Expect: 100-continue\r\n",
  "Connection: close\r\n",
  "\r\n\r\n",
  '--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n',
  "\r\n--x--\r\n",
  '{"image":"aGk="}',
  "5;a=b\r\n",
  "0\r\n\r\n",
];

let running: Promise<RunningApp> | undefined;

/** What a client sends before it ends its side: the server must answer each request or close, and never with its own fault. */
export async function fuzz(bytes: Uint8Array): Promise<void> {
  running ??= start_app();
  const { port, log } = await running;
  for (const { status } of await exchange(port, bytes)) {
    if (status === 500) throw new Error(`A client's bytes were answered with 500: ${log.join("\n")}`);
  }
}
