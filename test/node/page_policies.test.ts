import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { extname } from "node:path";
import type { EngineInfo, PretrainedOptions } from "vit-msn";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { start_browser, type TestBrowser, text_of, with_page } from "../support/browsers/browsers.ts";

// Pages under content security policies, on an isolated site: what runs, and why if it isn't what was asked for.

const CONTENT_TYPES: Record<string, string> = { ".js": "text/javascript", ".wasm": "application/wasm" };
const dist = new URL("../../dist/", import.meta.url);
const STRICT =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; img-src 'self'";
const POLICIES = {
  strict: STRICT,
  trusted_types: `${STRICT}; require-trusted-types-for 'script'`,
  sandbox: "sandbox allow-scripts; script-src * 'wasm-unsafe-eval'",
};
const DEFAULT_POLICY = 'trustedTypes.createPolicy("default", { createScriptURL: (url) => url });';

/** A page's program. */
const program = (options: PretrainedOptions, first: string) => `
import { env, pipeline } from "/index.web.js";
${first}
env.use_cache = false;
env.warn = () => {};
const answer = document.createElement("output");
try {
  const classify = await pipeline("image-classification", undefined, ${JSON.stringify(options)});
  const [best] = await classify("/models/fashion/pictures/9-ankle-boot.png", { top_k: 1 });
  answer.textContent = JSON.stringify({ ...best, ...classify.model.engine_info });
} catch (error) {
  answer.textContent = JSON.stringify({ error: String(error) });
}
document.documentElement.append(answer);
`;

let browser: TestBrowser;
let server: Server;
/** What the pages run, by its address. */
const programs = new Map<string, string>();
beforeAll(async () => {
  browser = await start_browser("chromium");
  server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    const headers = {
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
      // A sandboxed page has no origin.
      "Cross-Origin-Resource-Policy": "cross-origin",
      "Access-Control-Allow-Origin": "*",
      "Content-Security-Policy": POLICIES[searchParams.get("policy") as keyof typeof POLICIES] ?? STRICT,
      "Content-Type": CONTENT_TYPES[extname(pathname)] ?? "text/html",
    };
    const page = `<!doctype html><script type="module" src="${searchParams.get("program")}"></script>`;
    const body =
      pathname === "/page"
        ? page
        : (programs.get(pathname) ?? (await readFile(new URL(`.${pathname}`, dist)).catch(() => undefined)));
    response.writeHead(body === undefined ? 404 : 200, headers).end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterAll(async () => {
  await browser.close();
  server.close();
});

/** The answer of a page under a policy. */
async function answer(policy: keyof typeof POLICIES, options: PretrainedOptions, first = "") {
  const address = `/program-${programs.size}.js`;
  programs.set(address, program(options, first));
  const { port } = server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}/page?policy=${policy}&program=${address}`;
  return with_page(browser, url, async (page) => {
    await expect.poll(() => text_of(page, "output"), { timeout: 120_000 }).toMatch(/^\{/);
    return JSON.parse(await text_of(page, "output")) as EngineInfo & { label: string };
  });
}

describe.each([{ worker: false }, { worker: true }, { num_threads: 2 }])("with %o", (options) => {
  const device = "wasm";
  const is_elsewhere = !("worker" in options) || options.worker === true;

  test("a page under a strict policy runs all that was asked for", async () => {
    const found = await answer("strict", { device, ...options });
    expect(found).toMatchObject({
      label: "Ankle boot",
      worker: is_elsewhere,
      threads: options.num_threads ?? 1,
    });
  });

  test("a page that requires Trusted Types has Workers once its default policy allows their address", async () => {
    const found = await answer("trusted_types", { device, ...options }, DEFAULT_POLICY);
    expect(found).toMatchObject({
      label: "Ankle boot",
      worker: is_elsewhere,
      threads: options.num_threads ?? 1,
    });
  });

  test.each(["trusted_types", "sandbox"] as const)(
    "%s: without Workers the model runs on the page's thread, and says why",
    async (policy) => {
      const found = await answer(policy, { device, ...options });
      expect(found).toMatchObject({ label: "Ankle boot", worker: false, threads: 1 });
      const why =
        policy === "sandbox"
          ? /can't run in a Worker here: .*origin/
          : /can't run in a Worker here: .*TrustedScriptURL/;
      if (is_elsewhere) expect(found.reasons.join(" ")).toMatch(why);
    },
  );
});
