import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";
import { find_chromium } from "./scripts/chromium.mjs";

// The tests need no network beyond the test server, and a browser that asks for updates is slower to start.
const offline_args = [
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
// Chromium's sandbox refuses to run as root, as in a container.
const root_args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];

const executablePath = find_chromium();
const from_root = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  test: {
    // Loading a model and running it in an unoptimised browser tier takes seconds on a busy machine.
    testTimeout: 30_000,
    hookTimeout: 30_000,
    projects: [
      {
        // Tests use the package as its users get it: the bundles in dist/.
        resolve: { alias: { "vit-msn": from_root("./dist/index.node.js") } },
        test: {
          name: "node",
          environment: "node",
          include: ["test/suite/**/*.test.ts", "test/node/**/*.test.ts"],
          testTimeout: 30_000,
        },
      },
      {
        resolve: { alias: { "vit-msn": from_root("./dist/index.web.js") } },
        optimizeDeps: { noDiscovery: true, include: ["fast-check"] },
        test: {
          name: "chromium",
          include: ["test/suite/**/*.test.ts", "test/browser/**/*.test.ts"],
          testTimeout: 30_000,
          browser: {
            enabled: true,
            headless: true,
            screenshotFailures: false,
            provider: playwright({
              launchOptions: { executablePath, args: [...offline_args, ...root_args] },
            }),
            instances: [{ browser: "chromium" }],
          },
        },
      },
    ],
  },
});
