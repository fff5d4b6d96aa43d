// npm run test:api -- [options of schemathesis]: checks `vit-msn serve` against its own description at /openapi.json.
// Needs schemathesis (pip install schemathesis==4.32.5), in PATH or named by SCHEMATHESIS.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const { SCHEMATHESIS = "schemathesis" } = process.env;
/** Where it stores what it found. */
const folder = `${root}.out/api`;
await mkdir(folder, { recursive: true });
// A schema can't say which bytes are an image.
const checks = ["--exclude-checks", "positive_data_acceptance"];

const options = ["--port", "0", "--max-body", "1", "--drain", "0"];
const server = spawn(process.execPath, [`${root}dist/cli.js`, "serve", ...options], { cwd: root });
let said = "";
server.stderr.setEncoding("utf8").on("data", (text) => {
  said += text;
});
const exited = once(server, "exit");
try {
  while (!said.includes("listening at")) {
    await Promise.race([once(server.stderr, "data"), exited]);
    if (server.exitCode !== null) throw new Error(said);
  }
  const url = /http:\/\/\S+:\d+/.exec(said)?.[0];
  const args = ["run", `${url}/openapi.json`, ...checks, ...process.argv.slice(2)];
  const tester = spawn(SCHEMATHESIS, args, { stdio: "inherit", cwd: folder });
  const [code] = await once(tester, "exit");
  process.exitCode = code ?? 1;
  const faults = said.split("\n").filter((line) => line.includes(" failed: "));
  if (faults.length > 0) throw new Error(`The server logged faults:\n${faults.join("\n")}`);
} finally {
  server.kill("SIGTERM");
  await exited;
}
