// Finds Chromium, and the software GPU that comes with it.
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
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
  return first_executable([
    ...in_path(...names),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    chromium.executablePath(),
  ]);
}

/** The Vulkan driver of the software GPU that a Chromium carries, which Node's WebGPU can use too; else undefined. */
export function find_swiftshader() {
  const folders = [dirname(find_chromium() ?? ""), "/usr/lib/chromium", "/opt/google/chrome"];
  return folders.map((folder) => join(folder, "vk_swiftshader_icd.json")).find((path) => existsSync(path));
}

/** @param {string[]} names */
export function in_path(...names) {
  const folders = (process.env.PATH ?? "").split(delimiter);
  return folders.flatMap((folder) => names.map((name) => join(folder, name)));
}

/** @param {readonly string[]} paths */
export function first_executable(paths) {
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
