import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

/** The system's Chromium, or undefined: then playwright looks for the one it installed itself. */
function find_chromium(): string | undefined {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const folders = (process.env.PATH ?? "").split(delimiter);
  const candidates = folders.flatMap((folder) => names.map((name) => join(folder, name)));
  candidates.push("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome");
  return process.env.CHROME_PATH || candidates.find(is_executable);
}

function is_executable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

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
const from_root = (path: string) => new URL(path, import.meta.url).pathname;

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
