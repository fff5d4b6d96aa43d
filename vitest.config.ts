import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";
import { find_chromium, find_swiftshader, launch_args } from "./scripts/chromium.mjs";

const executablePath = find_chromium();
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

export default defineConfig({
  test: {
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
      {
        resolve: { alias: aliases("web") },
        optimizeDeps: { noDiscovery: true, include: ["fast-check"] },
        test: {
          name: "chromium",
          include: ["test/suite/**/*.test.ts", "test/browser/**/*.test.ts"],
          testTimeout: TIMEOUT_MS,
          hookTimeout: TIMEOUT_MS,
          provide: { require_gpu },
          browser: {
            enabled: true,
            headless: true,
            screenshotFailures: false,
            provider: playwright({
              launchOptions: { executablePath, args: launch_args },
            }),
            instances: [{ browser: "chromium" }],
          },
        },
      },
    ],
  },
});
