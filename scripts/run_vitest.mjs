// Runs the TypeScript tests and counts them over both runtimes: .out/vitest-count.txt says "N passed, N failed".
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

const results = ".out/vitest.json";
mkdirSync(".out", { recursive: true });
rmSync(results, { force: true });
const { status } = spawnSync(
  process.execPath,
  [
    "node_modules/vitest/vitest.mjs",
    "run",
    "--reporter=dot",
    "--reporter=json",
    `--outputFile.json=${results}`,
  ],
  { stdio: "inherit", env: { ...process.env, NO_COLOR: "1" } },
);
const { passed, failed } = count();
// A file that can't be loaded, or an error outside any test, fails the run though no test failed.
const failures = status === 0 ? failed : Math.max(failed, 1);
writeFileSync(".out/vitest-count.txt", `${passed} passed, ${failures} failed\n`);
process.exitCode = failures === 0 ? 0 : 1;

function count() {
  try {
    const report = JSON.parse(readFileSync(results, "utf8"));
    return { passed: report.numPassedTests, failed: report.numFailedTests };
  } catch {
    return { passed: 0, failed: 1 };
  }
}
