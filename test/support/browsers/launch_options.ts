import type { LaunchOptions } from "playwright";
import { find_browser } from "../../../scripts/browsers.mjs";
import { launch_args } from "../../../scripts/chromium.mjs";

/** How Playwright starts each of the browsers that it drives. */
export const CHROMIUM: LaunchOptions = { executablePath: find_browser("chromium"), args: launch_args };

/** The stock browser, by Playwright's channel over WebDriver BiDi. */
export const FIREFOX: LaunchOptions = {
  channel: "moz-firefox",
  executablePath: find_browser("firefox"),
};

/** With WebGPU, which stock Firefox on Linux has behind preferences, on one Vulkan driver. @param driver its ICD file. */
export function firefox_on_vulkan(driver: string): LaunchOptions {
  return {
    ...FIREFOX,
    firefoxUserPrefs: { "dom.webgpu.enabled": true, "gfx.webgpu.ignore-blocklist": true },
    env: { ...process.env, VK_ICD_FILENAMES: driver },
  };
}
