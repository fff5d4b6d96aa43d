import { writeFile } from "node:fs/promises";
import { type Browser, chromium, firefox, type LaunchOptions, type Page } from "playwright";
import { type Engine, find_browser } from "../../../scripts/browsers.mjs";
import { CHROMIUM, FIREFOX } from "./launch_options.ts";
import { open_webkit, type WebKitSession } from "./webkit.ts";

export type { Engine };

/** What tests do with a page in every browser. */
export interface TestPage {
  goto(url: string): Promise<void>;
  /** Runs the body of an async function in the page. `arg` and the result are JSON. */
  run<T>(body: string, arg?: unknown): Promise<T>;
  /** Chooses files in a file input. */
  choose_files(selector: string, ...paths: string[]): Promise<void>;
  click(selector: string): Promise<void>;
  screenshot(path: string): Promise<void>;
  /** Seconds of processor time that the page's main thread has used; missing where the browser doesn't report it. */
  processor_time?(): Promise<number>;
  /** Exceptions that nobody caught; missing where the browser's driver doesn't report them. */
  faults?(): readonly string[];
  close(): Promise<void>;
}

export interface TestBrowser {
  engine: Engine;
  version: string;
  /** Whether a Worker may start others: in Firefox that may hang while a driver listens to Workers. */
  has_nested_workers: boolean;
  /** A page, in a separate profile where the browser has several. */
  open(): Promise<TestPage>;
  close(): Promise<void>;
}

const STARTERS: Readonly<Record<Engine, (options: LaunchOptions) => Promise<TestBrowser>>> = {
  chromium: async (options) => by_playwright("chromium", await chromium.launch({ ...CHROMIUM, ...options })),
  firefox: async (options) => by_playwright("firefox", await firefox.launch({ ...FIREFOX, ...options })),
  webkit: start_webkit,
};

const ALL = Object.keys(STARTERS) as Engine[];

/** The browsers that this machine has. */
export const ENGINES: readonly Engine[] = ALL.filter((engine) => find_browser(engine) !== undefined);
for (const engine of ALL)
  if (!ENGINES.includes(engine)) console.log(`Skipped in ${engine}: it isn't installed.`);

/** @param options for browsers that Playwright starts. */
export function start_browser(engine: Engine, options: LaunchOptions = {}): Promise<TestBrowser> {
  return STARTERS[engine](options);
}

/** A page that is closed when `body` ends. */
export async function with_page<T>(
  browser: TestBrowser,
  url: string,
  body: (page: TestPage) => Promise<T>,
): Promise<T> {
  const page = await browser.open();
  try {
    await page.goto(url);
    return await body(page);
  } finally {
    await page.close();
  }
}

/** What an element shows; nothing where there is no such element. */
export function text_of(page: TestPage, selector: string): Promise<string> {
  return page.run("return document.querySelector(arg)?.innerText ?? ''", selector);
}

/** The best level for one thread: not every browser has relaxed SIMD. @param dist where the page's server has the engines. */
export function simd_level(page: TestPage, dist = "/dist/"): Promise<string> {
  return page.run(
    `const binary = await (await fetch(arg + "vit_msn_relaxed.wasm")).arrayBuffer();
    return WebAssembly.validate(binary) ? "relaxed" : "simd128";`,
    dist,
  );
}

/** The function whose body it is, called with its argument. As text: the test runner rewrites imports in code. */
const call_of = (body: string, arg: unknown) =>
  `(async (arg) => { ${body} })(${JSON.stringify(arg ?? null)})`;

function by_playwright(engine: Engine, browser: Browser): TestBrowser {
  return {
    engine,
    version: browser.version(),
    has_nested_workers: engine !== "firefox", // Playwright's session of WebDriver BiDi is such a driver
    open: async () => {
      const context = await browser.newContext();
      const page = await context.newPage();
      const faults: string[] = [];
      page.on("pageerror", (error) => faults.push(String(error)));
      return {
        goto: async (url) => void (await page.goto(url)),
        run: (body, arg) => page.evaluate(call_of(body, arg)),
        choose_files: (selector, ...paths) => page.locator(selector).setInputFiles(paths),
        click: (selector) => page.locator(selector).click(),
        screenshot: async (path) => void (await page.screenshot({ path, fullPage: true })),
        faults: () => faults,
        ...(engine === "chromium" && { processor_time: await processor_time(page) }),
        close: () => context.close(),
      };
    },
    close: () => browser.close(),
  };
}

/** By the protocol of Chromium's developer tools. */
async function processor_time(page: Page): Promise<() => Promise<number>> {
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable");
  return async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "ThreadTime")?.value as number;
  };
}

/** WebKitGTK shows one page at a time. */
async function start_webkit(): Promise<TestBrowser> {
  const session = await open_webkit();
  return {
    engine: "webkit",
    version: session.version,
    has_nested_workers: true,
    open: async () => page_of(session),
    close: () => session.close(),
  };
}

function page_of({ send }: WebKitSession): TestPage {
  const element = async (selector: string) => {
    const found = await send("POST", "/element", { using: "css selector", value: selector });
    return Object.values(found as Record<string, string>)[0];
  };
  const goto = async (url: string) => void (await send("POST", "/url", { url }));
  return {
    goto,
    run: async (body, arg) => {
      const script =
        `const done = arguments[0]; ${call_of(body, arg)}.then(` +
        "(value) => done(JSON.stringify({ value })), (error) => done(JSON.stringify({ error: String(error) })))";
      const answer = JSON.parse((await send("POST", "/execute/async", { script, args: [] })) as string);
      if (answer.error !== undefined) throw new Error(answer.error);
      return answer.value;
    },
    choose_files: async (selector, ...paths) => {
      await send("POST", `/element/${await element(selector)}/value`, { text: paths.join("\n") });
    },
    click: async (selector) => void (await send("POST", `/element/${await element(selector)}/click`, {})),
    screenshot: async (path) =>
      writeFile(path, Buffer.from((await send("GET", "/screenshot")) as string, "base64")),
    close: () => goto("about:blank"),
  };
}
