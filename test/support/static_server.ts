import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";

const CONTENT_TYPES: Record<string, string> = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/** A static server, as simple as any that pages are put on. */
export interface StaticServer {
  /** Its address, with a slash at its end. */
  url: string;
  /** The paths that were asked for. */
  asked: string[];
  close(): Promise<void>;
}

/** Serves a folder, or files from memory. */
export async function serve(files: string | Readonly<Record<string, Uint8Array>>): Promise<StaticServer> {
  const asked: string[] = [];
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    const path = pathname.endsWith("/") ? `${pathname.slice(1)}index.html` : pathname.slice(1);
    asked.push(path);
    const body =
      typeof files === "string" ? await readFile(join(files, path)).catch(() => undefined) : files[path];
    const headers = { "content-type": CONTENT_TYPES[extname(path)] ?? "application/octet-stream" };
    if (body === undefined) response.writeHead(404).end();
    else response.writeHead(200, headers).end(body);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    asked,
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
