import { spawn } from "node:child_process";

/**
 * A display for WebKitGTK, which has no headless mode: the one that there is, or Xvfb, which is one in memory.
 *
 * @returns the environment of a browser, and what ends the display.
 */
export async function open_display(): Promise<{ env: Record<string, string>; close: () => void }> {
  if (process.platform !== "linux" || process.env.DISPLAY) return { env: {}, close: () => {} };
  const server = spawn("Xvfb", ["-displayfd", "1", "-screen", "0", "1400x1100x24", "-nolisten", "tcp"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  const display = await new Promise<string>((resolve, reject) => {
    server.once("error", (cause) => reject(new Error("Xvfb doesn't start; install xvfb.", { cause })));
    server.once("exit", (code) => reject(new Error(`Xvfb ended with ${code}.`)));
    server.stdout.once("data", (number) => resolve(`:${String(number).trim()}`));
  });
  return { env: { DISPLAY: display, LIBGL_ALWAYS_SOFTWARE: "1" }, close: () => server.kill() };
}
