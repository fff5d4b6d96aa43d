// Bundles whenever ts/ changes and runs the tests named on the command line again: npm run watch -- PATTERN
import { spawn, spawnSync } from "node:child_process";
import { watch } from "node:fs";

/** Editors write a file in several steps. */
const SETTLE_MS = 100;
const tests = process.argv.slice(2);

/** @type {import("node:child_process").ChildProcess | undefined} */
let running;
/** @type {NodeJS.Timeout | undefined} */
let soon;

function run() {
  running?.kill();
  const { status } = spawnSync(process.execPath, ["scripts/bundle.mjs"], { stdio: "inherit" });
  if (status !== 0) return;
  const args = ["node_modules/vitest/vitest.mjs", "run", "--project", "node", ...tests];
  running = spawn(process.execPath, args, { stdio: "inherit" });
}

for (const folder of ["ts", "test"]) {
  watch(folder, { recursive: true }, () => {
    clearTimeout(soon);
    soon = setTimeout(run, SETTLE_MS);
  });
}
run();
