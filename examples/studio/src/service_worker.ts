// Keeps the whole page for use without a network, and serves it so that it may share memory between threads, also where it
// lies on a server whose headers nobody can set.

/** What the build has written, relative to this file; and what distinguishes one build from another. */
declare const FILES: readonly string[];
declare const VERSION: string;

/** What of a service worker's globals this uses: the compiler's list is that of a page. */
interface ServiceWorker {
  location: Location;
  clients: { claim(): Promise<void> };
  addEventListener(type: "install" | "activate", listener: (event: ExtendableEvent) => void): void;
  addEventListener(type: "fetch", listener: (event: FetchEvent) => void): void;
}
interface ExtendableEvent {
  waitUntil(work: Promise<unknown>): void;
}
interface FetchEvent {
  request: Request;
  respondWith(response: Promise<Response>): void;
}
const worker = globalThis as unknown as ServiceWorker;

const PREFIX = "vit-msn-studio-";
const NAME = PREFIX + VERSION;
const HOME = new URL("./", worker.location.href);

worker.addEventListener("install", (event) => {
  const requests = FILES.map((file) => new Request(new URL(file, HOME), { cache: "no-cache" }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(requests)));
});

worker.addEventListener("activate", (event) => {
  // Not awaited: in Firefox claim() waits for each of the page's Workers, and every fetch waits for the end of this event.
  event.waitUntil(forget_older().then(() => void worker.clients.claim()));
});

worker.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const is_ours = url.origin === HOME.origin && url.pathname.startsWith(HOME.pathname);
  if (event.request.method === "GET" && is_ours) event.respondWith(answer(event.request, url));
});

async function forget_older(): Promise<void> {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(PREFIX) && name !== NAME);
  await Promise.all(old.map((name) => caches.delete(name)));
}

async function answer(request: Request, { pathname }: URL): Promise<Response> {
  const cache = await caches.open(NAME);
  const file = pathname === HOME.pathname ? new URL("index.html", HOME) : request;
  return isolated((await cache.match(file, { ignoreSearch: true })) ?? (await fetch(request)));
}

function isolated(response: Response): Response {
  if (response.status === 0 || response.redirected) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
