import { defineBrowserProvider } from "@vitest/browser";
import type { BrowserProvider } from "vitest/node";
import { open_webkit, type WebKitSession } from "./webkit.ts";

/** Vitest's provider of WebKitGTK. Tests run within the page, so all that it has to do is to open one. */
export function webkit_provider() {
  return defineBrowserProvider({
    name: "webkitgtk",
    supportedBrowser: ["webkit"],
    providerFactory: () => new WebKitProvider(),
  });
}

class WebKitProvider implements BrowserProvider {
  readonly name = "webkitgtk";
  readonly supportsParallelism = false;
  readonly initScripts: string[] = [];
  #session: Promise<WebKitSession> | undefined;

  getCommandsContext(): Record<string, unknown> {
    return {};
  }

  async openPage(_session_id: string, url: string): Promise<void> {
    this.#session ??= open_webkit();
    await (await this.#session).send("POST", "/url", { url });
  }

  async close(): Promise<void> {
    await (await this.#session)?.close();
    this.#session = undefined;
  }
}
