import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { skipped } from "../support/skips.ts";

// Dawn and the drivers that it loads write to standard error by themselves, so a separate process is watched.
const PROGRAM = `
  const { ViTMSNModel } = await import("./dist/index.node.js");
  const model = await ViTMSNModel.from_pretrained("test/fixtures/tiny", { device: process.argv[1] }).catch((error) => error);
  console.log(JSON.stringify(model.engine_info?.reasons ?? model.message), process.env.XDG_RUNTIME_DIR);
`;

async function load_on(device: string, variables: NodeJS.ProcessEnv = {}) {
  const { VK_ICD_FILENAMES, XDG_RUNTIME_DIR, ...inherited } = process.env;
  const child = spawn(process.execPath, ["--input-type=module", "-e", PROGRAM, device], {
    cwd: fileURLToPath(new URL("../..", import.meta.url)),
    env: { ...inherited, ...variables },
  });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (text: Buffer) => (output.stdout += text.toString()));
  child.stderr.on("data", (text: Buffer) => (output.stderr += text.toString()));
  await once(child, "close");
  return output;
}

test.skipIf(
  skipped(
    process.platform !== "linux" || existsSync("/dev/dri"),
    "a machine whose Linux shows no GPU is needed",
  ),
)('device "auto" is quiet on a machine without a GPU', async () => {
  const { stdout, stderr } = await load_on("auto");
  expect(stdout).toMatch(/Not on WebGPU: Linux shows no GPU here/);
  expect(stderr).toBe("");
});

test("drivers print no complaints about the environment, and the environment stays as it is", async () => {
  const { stdout, stderr } = await load_on("webgpu");
  expect(stderr).not.toMatch(/XDG_RUNTIME_DIR/);
  expect(stdout).toMatch(/undefined\n$/);
});
