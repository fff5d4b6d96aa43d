import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";
import { beforeAll, describe, expect, test } from "vitest";
import { type CaseOutcome, FIXTURES, TOLERANCES } from "../support/parity.ts";
import { skipped } from "../support/skips.ts";

// Node for arm64, by QEMU where the machine is another: its engines compile the same WebAssembly to other instructions.

const root = fileURLToPath(new URL("../../", import.meta.url));
const node = `${root}.tools/node-arm64/bin/node`;
const QEMU = "/usr/bin/qemu-aarch64-static";
/** Where Debian has arm64's C library. */
const LIBRARIES = "/usr/aarch64-linux-gnu";
const has_arm64 =
  existsSync(node) && (process.arch === "arm64" || (existsSync(QEMU) && existsSync(LIBRARIES)));
const LEVELS = ["simd128", "relaxed", "simd128+threads", "relaxed+threads"] as const;
const RUNS = LEVELS.flatMap((level) =>
  (level.endsWith("+threads") ? [1, 2] : [1]).map((num_threads) => ({ level, num_threads })),
);

interface Outcome extends CaseOutcome {
  name: string;
  level: string;
  num_threads: number;
  arch: string;
  error?: string;
}

describe.skipIf(skipped(!has_arm64, "build.sh test installs Node for arm64 and QEMU on Debian"))(
  "Node on arm64",
  () => {
    let outcomes: Outcome[];
    // Emulation takes about ten times as long.
    beforeAll(async () => {
      const program = `${root}.out/arm64/levels.mjs`;
      await build({
        entryPoints: [`${root}test/node/runtimes/levels.ts`],
        outfile: program,
        bundle: true,
        format: "esm",
        platform: "node",
        alias: { "vit-msn": `${root}dist/index.node.js` },
        external: [`${root}dist/*`],
        logLevel: "error",
      });
      const [command, ...args] = process.arch === "arm64" ? [node] : [QEMU, node];
      const { stdout } = await promisify(execFile)(command as string, [...args, program, ...LEVELS], {
        env: { ...process.env, QEMU_LD_PREFIX: LIBRARIES, NODE_OPTIONS: "" },
        maxBuffer: 2 ** 26,
      });
      outcomes = stdout
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Outcome);
    }, 900_000);

    describe.each(RUNS)("$level, $num_threads threads: float32 is near the reference's outputs", (run) => {
      test.each(FIXTURES)("%s", (name) => {
        const outcome = outcomes.find(
          ({ name: found, level, num_threads }) =>
            found === name && level === run.level && num_threads === run.num_threads,
        );
        expect(outcome).toMatchObject({
          arch: "arm64",
          info: { level: run.level, threads: run.num_threads },
        });
        for (const [output, difference] of Object.entries((outcome as Outcome).differences))
          expect(difference, output).toBeLessThanOrEqual(TOLERANCES.float32);
      });
    });
  },
);
