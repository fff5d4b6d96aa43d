// Serves the built studio: node examples/studio/serve.mjs [FOLDER], default dist-studio/. Environment: PORT, default 8000.
import { relative } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { serve } from "@hono/node-server";
import { serveStatic } from "@hono/node-server/serve-static";
import { Hono } from "hono";

/**
 * @param {string} folder
 * @param {number} port 0: any that is free.
 * @returns {Promise<{ url: string, close: () => void }>}
 */
export async function serve_studio(folder, port) {
  const app = new Hono();
  app.use(async (context, next) => {
    await next();
    // With these a page may share memory between threads.
    context.header("Cross-Origin-Opener-Policy", "same-origin");
    context.header("Cross-Origin-Embedder-Policy", "require-corp");
    context.header("Cache-Control", "no-cache");
  });
  app.use(serveStatic({ root: relative(process.cwd(), folder) || "." }));
  return new Promise((resolve, reject) => {
    const server = serve({ fetch: app.fetch, port, hostname: "127.0.0.1" }, (info) =>
      resolve({ url: `http://127.0.0.1:${info.port}/`, close: () => void server.close() }),
    );
    server.on("error", reject);
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const folder = process.argv[2] ?? fileURLToPath(new URL("../../dist-studio", import.meta.url));
  const { url } = await serve_studio(folder, Number(process.env.PORT ?? 8000));
  console.log(`The studio is at ${url} (Ctrl-C ends it).`);
}
