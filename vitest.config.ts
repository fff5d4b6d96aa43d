import { fileURLToPath } from "node:url";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";
import { find_chromium, launch_args } from "./scripts/chromium.mjs";

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
              launchOptions: { executablePath, args: launch_args },
            }),
            instances: [{ browser: "chromium" }],
          },
        },
      },
    ],
  },
});
