// Finds the browser of the tests. As a program: prints its path, or exits with 1 where there is none.
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright";

/** The tests need no network beyond the test server, and a browser that asks for updates is slower to start. */
export const launch_args = [
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // WebGPU on the software adapter that comes with the browser, if it has one.
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
  // Chromium's sandbox refuses to run as root, as in a container.
  ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
];

/** CHROME_PATH, the system's Chromium or Chrome, or the Chromium that playwright installed; else undefined. */
export function find_chromium() {
  if (process.env.CHROME_PATH) return process.env.CHROME_PATH;
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const folders = (process.env.PATH ?? "").split(delimiter);
  const candidates = folders.flatMap((folder) => names.map((name) => join(folder, name)));
  candidates.push("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", chromium.executablePath());
  return candidates.find(is_executable);
}

/** The Vulkan driver of the software GPU that a Chromium carries, which Node's WebGPU can use too; else undefined. */
export function find_swiftshader() {
  const folders = [dirname(find_chromium() ?? ""), "/usr/lib/chromium", "/opt/google/chrome"];
  return folders.map((folder) => join(folder, "vk_swiftshader_icd.json")).find((path) => existsSync(path));
}

/** @param {string} path */
function is_executable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

// A bundle that holds this file isn't this program.
if (
  import.meta.url.endsWith("/chromium.mjs") &&
  import.meta.url === pathToFileURL(process.argv[1] ?? "").href
) {
  const path = find_chromium();
  if (path === undefined || !is_executable(path)) process.exitCode = 1;
  else console.log(path);
}
