import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig, type TestUserConfig } from "vitest/config";
import { find_browser, find_lavapipe } from "./scripts/browsers.mjs";
import { find_swiftshader } from "./scripts/chromium.mjs";
import { CHROMIUM, FIREFOX, firefox_on_vulkan } from "./test/support/browsers/launch_options.ts";
import { webkit_provider } from "./test/support/browsers/webkit_provider.ts";

const from_root = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The package's entries; the longer name first, since a name also stands for what begins with it. */
const aliases = (runtime: "node" | "web") => ({
  "vit-msn/few-shot": from_root(`./dist/few_shot.${runtime}.js`),
  "vit-msn/similar": from_root(`./dist/similar.${runtime}.js`),
  "vit-msn/training": from_root(`./dist/training.${runtime}.js`),
  "vit-msn": from_root(`./dist/index.${runtime}.js`),
});

// Node 20 has relaxed SIMD, which the tests of the engine's levels need, behind a flag. Newer ones don't know the flag.
const is_node_20 = process.versions.node.startsWith("20.");
const relaxed_simd_args = is_node_20 ? ["--experimental-wasm-relaxed-simd"] : [];

// Node's WebGPU takes the browser's software GPU where nobody chose another driver.
const swiftshader = find_swiftshader();
if (swiftshader !== undefined) process.env.VK_ICD_FILENAMES ??= swiftshader;
// Where a software GPU was installed, a test that finds none has failed.
const require_gpu = process.env.VIT_MSN_REQUIRE_GPU === "1" && swiftshader !== undefined;

/** Ends only what hangs: a slow or busy machine takes minutes for what usually takes seconds. */
const TIMEOUT_MS = 180_000;

type Engine = Parameters<typeof find_browser>[0];

/** Of the same tests in each browser: those of every runtime, and those of pages. */
const in_browser = (name: string, browser: TestUserConfig["browser"], options: TestUserConfig = {}) => ({
  resolve: { alias: aliases("web") },
  optimizeDeps: { noDiscovery: true, include: ["fast-check"] },
  test: {
    name,
    include: ["test/suite/**/*.test.ts", "test/browser/**/*.test.ts"],
    testTimeout: TIMEOUT_MS,
    hookTimeout: TIMEOUT_MS,
    provide: { require_gpu: require_gpu && name === "chromium" },
    browser: { enabled: true, screenshotFailures: false, ui: false, ...browser },
    ...options,
  },
});

const browsers = {
  chromium: in_browser("chromium", {
    headless: true,
    provider: playwright({ launchOptions: CHROMIUM }),
    instances: [{ browser: "chromium" }],
  }),
  firefox: in_browser("firefox", {
    headless: true,
    provider: playwright({ launchOptions: FIREFOX }),
    instances: [{ browser: "firefox" }],
  }),
  webkit: in_browser(
    "webkit",
    { headless: false, provider: webkit_provider(), instances: [{ browser: "webkit" }] },
    { setupFiles: ["test/support/browsers/memory_opfs.ts"] },
  ),
};
const installed = (Object.keys(browsers) as Engine[]).filter((engine) => find_browser(engine) !== undefined);

/** Firefox's WebGPU, on software that compiles kernels for seconds: of all tests only the reference's outputs run there. */
const lavapipe = find_lavapipe();
if (lavapipe === undefined) console.log("Skipped in Firefox: WebGPU, as Mesa's lavapipe isn't installed.");
const firefox_webgpu =
  lavapipe !== undefined && installed.includes("firefox")
    ? [
        in_browser(
          "firefox-webgpu",
          {
            headless: true,
            provider: playwright({ launchOptions: firefox_on_vulkan(lavapipe) }),
            instances: [{ browser: "firefox" }],
          },
          { include: ["test/suite/parity_webgpu.test.ts"], provide: { require_gpu: true } },
        ),
      ]
    : [];

export default defineConfig({
  test: {
    // Half of the tests in Node wait for processes or software GPUs: one worker would leave two cores idle.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    projects: [
      {
        // Tests use the package as its users get it: the bundles in dist/.
        resolve: { alias: aliases("node") },
        test: {
          name: "node",
          environment: "node",
          include: ["test/suite/**/*.test.ts", "test/node/**/*.test.ts"],
          execArgv: relaxed_simd_args,
          provide: { require_gpu },
          testTimeout: TIMEOUT_MS,
          hookTimeout: TIMEOUT_MS,
        },
      },
      ...installed.map((engine) => browsers[engine]),
      ...firefox_webgpu,
    ],
  },
});
