// Finds the browsers of the tests. As a program: prints the path of the one named, or exits with 1 where there is none.
// Usage: browsers.mjs chromium|firefox|webkit
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { find_chromium, first_executable, in_path } from "./chromium.mjs";

/** @typedef {"chromium" | "firefox" | "webkit"} Engine */

/** @type {Readonly<Record<Engine, () => string | undefined>>} */
const FINDERS = { chromium: find_chromium, firefox: find_firefox, webkit: find_webkit };

/** The path of an engine's browser; undefined where it isn't installed. @param {Engine} engine */
export function find_browser(engine) {
  return FINDERS[engine]();
}

/** FIREFOX_PATH, or the system's stock Firefox, which Playwright drives over WebDriver BiDi. */
function find_firefox() {
  if (process.env.FIREFOX_PATH) return process.env.FIREFOX_PATH;
  return first_executable([
    ...in_path("firefox-esr", "firefox"),
    "/Applications/Firefox.app/Contents/MacOS/firefox",
    "C:\\Program Files\\Mozilla Firefox\\firefox.exe",
  ]);
}

/**
 * WebKitGTK's smallest browser, next to the driver that starts it. Debian puts it into the library's folder. On macOS the driver of
 * Safari, where it may be used ("sudo safaridriver --enable").
 */
function find_webkit() {
  if (process.platform === "darwin")
    return process.env.VIT_MSN_SAFARI === "1" ? "/usr/bin/safaridriver" : undefined;
  if (first_executable(in_path("WebKitWebDriver")) === undefined) return undefined;
  const folders = ["/usr/lib", "/usr/libexec", ...paths_in("/usr/lib")];
  return first_executable(folders.map((folder) => join(folder, "webkit2gtk-4.1/MiniBrowser")));
}

/** The manifest of Mesa's software Vulkan, lavapipe; undefined where it isn't installed. */
export function find_lavapipe() {
  return paths_in("/usr/share/vulkan/icd.d").find((path) => /lvp_icd[^/]*\.json$/.test(path));
}

/** @param {string} folder */
function paths_in(folder) {
  try {
    return readdirSync(folder).map((name) => join(folder, name));
  } catch {
    return [];
  }
}

// A bundle that holds this file isn't this program.
if (
  import.meta.url.endsWith("/browsers.mjs") &&
  import.meta.url === pathToFileURL(process.argv[1] ?? "").href
) {
  const path = find_browser(/** @type {Engine} */ (process.argv[2]));
  if (path === undefined || first_executable([path]) === undefined) process.exitCode = 1;
  else console.log(path);
}
