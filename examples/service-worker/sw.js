// Classifies what the page posts to ./classify, also offline. vit-msn/static is the package in one file, since service
// workers can't import code later.
import { env, pipeline } from "./vit-msn/static.web.js";

const FILES = ["./", "vit-msn/static.web.js", "vit-msn/vit_msn_simd128.wasm"];
const engine = "vit-msn/vit_msn_simd128.wasm";

/** Shared by all requests while the browser keeps the worker. */
let loading;

async function load() {
  // A service worker's own fetches don't see its cache. The model's files are cached by vit-msn.
  env.wasm = await caches.match(engine);
  return pipeline("image-classification", "./vit-msn/models/fashion", { device: "wasm" });
}

async function classify(request) {
  loading ??= load();
  try {
    return Response.json(await (await loading)(await request.blob(), { top_k: 3 }));
  } catch (error) {
    return Response.json({ message: error.message }, { status: 400 });
  }
}

async function prepare() {
  await (await caches.open("page")).addAll(FILES);
  loading ??= load();
  await loading;
  await skipWaiting();
}

addEventListener("install", (event) => event.waitUntil(prepare()));
// Not awaited: in Firefox claim() waits for the page's Workers, and every fetch waits for the end of this event.
addEventListener("activate", () => void clients.claim());
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "POST" && request.url.endsWith("/classify")) event.respondWith(classify(request));
  else event.respondWith(caches.match(request).then((cached) => cached ?? fetch(request)));
});
