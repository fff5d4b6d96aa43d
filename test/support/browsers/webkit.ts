import { spawn } from "node:child_process";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { setTimeout } from "node:timers/promises";
import { find_browser } from "../../../scripts/browsers.mjs";
import { open_display } from "./display.ts";

/** A session of WebKitGTK, or of Safari on macOS, driven by plain WebDriver requests: Playwright drives only its own WebKit. */
export interface WebKitSession {
  version: string;
  /** A WebDriver command of the session. */
  send(method: "GET" | "POST" | "DELETE", path: string, body?: unknown): Promise<unknown>;
  close(): Promise<void>;
}

const IS_SAFARI = process.platform === "darwin";

/** Milliseconds that a page may take to load, and a script to answer. */
const TIMEOUTS = { pageLoad: 300_000, script: 900_000 };

export async function open_webkit(): Promise<WebKitSession> {
  const display = await open_display();
  const port = await free_port();
  const driver = spawn(IS_SAFARI ? "/usr/bin/safaridriver" : "WebKitWebDriver", ["-p", String(port)], {
    stdio: "ignore",
    detached: true, // a group of processes, which close() ends as a whole
    // Safari lets isolated pages share memory; WebKitGTK asks for this variable.
    env: { ...process.env, ...display.env, JSC_useSharedArrayBuffer: "1" },
  });
  const end = () => {
    try {
      if (driver.pid !== undefined) process.kill(-driver.pid);
    } catch {
      // It has ended.
    }
    display.close();
  };
  process.once("exit", end);
  const ask = (method: string, path: string, body?: unknown) =>
    request(`http://127.0.0.1:${port}${path}`, method, body);
  try {
    await until_ready(() => ask("GET", "/status"));
    const options = { binary: find_browser("webkit"), args: ["--automation"] };
    const browser = IS_SAFARI ? { browserName: "safari" } : { "webkitgtk:browserOptions": options };
    const capabilities = { alwaysMatch: { ...browser, timeouts: TIMEOUTS } };
    const session = (await ask("POST", "/session", { capabilities })) as {
      sessionId: string;
      capabilities: { browserVersion: string };
    };
    const send: WebKitSession["send"] = (method, path, body) =>
      ask(method, `/session/${session.sessionId}${path}`, body);
    return {
      version: session.capabilities.browserVersion,
      send,
      close: async () => {
        await send("DELETE", "").catch(() => {});
        process.removeListener("exit", end);
        end();
      },
    };
  } catch (error) {
    end();
    throw error;
  }
}

async function request(url: string, method: string, body: unknown): Promise<unknown> {
  const response = await fetch(url, { method, body: body === undefined ? undefined : JSON.stringify(body) });
  const { value } = (await response.json()) as { value: { error?: string; message?: string } | null };
  if (value?.error !== undefined) throw new Error(`${value.error}: ${value.message}`);
  return value;
}

async function until_ready(ask: () => Promise<unknown>): Promise<void> {
  for (let attempts = 300; ; attempts--) {
    try {
      await ask();
      return;
    } catch (error) {
      if (attempts === 0) throw error;
      await setTimeout(100);
    }
  }
}

async function free_port(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
