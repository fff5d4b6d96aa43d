// npm run soak -- --minutes 10: `vit-msn serve` among misbehaving clients. Well-behaved ones must get the right
// answers all the time, none a 500; the server's memory must stay level after a warm-up, and SIGTERM must end it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ask, bad_clients } from "./clients.mjs";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    clients: { type: "string", default: "12" },
    model: { type: "string", default: "test/fixtures/tiny" },
  },
});
const root = fileURLToPath(new URL("../..", import.meta.url));
const image = await readFile(`${root}models/fashion/pictures/8-bag.png`);

const options = ["--port", "0", "--timeout", "3", "--max-body", "2", "--drain", "1", "--model", values.model];
const server = spawn(process.execPath, [`${root}dist/cli.js`, "serve", ...options], { cwd: root });
let said = "";
server.stderr.setEncoding("utf8").on("data", (text) => {
  said += text;
});
const exited = once(server, "exit");
while (!said.includes("listening at")) {
  await Promise.race([once(server.stderr, "data"), exited]);
  if (server.exitCode !== null) throw new Error(said);
}
const target = { port: Number(/:(\d+): /.exec(said)?.[1]), image, patience_ms: 10_000 };

const until = Date.now() + Number(values.minutes) * 60_000;
const wants_more = () => Date.now() < until;
/** @type {string[]} */
const failures = [];
const counts = { right: 0, refused: 0, bad: 0 };

/** @type {Map<string, string>} */
const expected = new Map();
for (const turn of [0, 1]) {
  const { path, status, text } = await ask(target, turn);
  if (status !== 200) throw new Error(`${path}: ${status} ${text}`);
  expected.set(path, text);
}

async function do_right() {
  for (let turn = 0; wants_more(); turn++) {
    const { path, status, text } = await ask(target, turn).catch((error) => ({
      path: `turn ${turn}`,
      status: 0,
      text: `${error.message}: ${error.cause?.message}`,
    }));
    // A full queue is reported as such.
    if (status === 429) counts.refused++;
    else if (status === 200 && text === expected.get(path)) counts.right++;
    else failures.push(`${path}: ${status} ${text.slice(0, 200)}`);
  }
}

/** @param {number} first */
async function do_wrong(first) {
  const clients = Object.values(bad_clients);
  for (let turn = first; wants_more(); turn++) {
    await clients[turn % clients.length]?.(target);
    counts.bad++;
  }
}

/** Of the server, in MB; empty while it doesn't answer. */
async function resident_memory() {
  const text = await (await fetch(`http://127.0.0.1:${target.port}/metrics`)).text();
  const fault = /^vit_msn_requests_total\{.*status="500".*$/m.exec(text);
  if (fault !== null) failures.push(fault[0]);
  return Math.round(Number(/^process_resident_memory_bytes (\S+)/m.exec(text)?.[1]) / 1e6);
}

/** @type {number[]} */
const memory = [];
async function watch() {
  const every_ms = Math.min(10_000, Number(values.minutes) * 2000);
  while (wants_more()) {
    await new Promise((resolve) => setTimeout(resolve, every_ms));
    memory.push(await resident_memory());
    console.log(`${memory.at(-1)} MB, ${JSON.stringify(counts)}`);
  }
}

const wrong = Array.from({ length: Number(values.clients) }, (_, i) => do_wrong(7 * i));
await Promise.all([watch(), do_right(), do_right(), ...wrong]);

// The last third may not be above the one before it, except for what the garbage collector hasn't freed yet.
const third = Math.floor(memory.length / 3);
const [before, after] = [memory.slice(third, 2 * third), memory.slice(2 * third)].map((part) =>
  Math.max(...part),
);
const allowed = 1.15 * /** @type {number} */ (before) + 20;
if (/** @type {number} */ (after) > allowed) failures.push(`memory grew from ${before} to ${after} MB`);

const busy = Object.values(bad_clients).map((client) => client({ ...target, patience_ms: 60_000 }));
server.kill("SIGTERM");
const ended = await Promise.race([
  exited,
  new Promise((resolve) => setTimeout(resolve, 30_000, "not in 30 s")),
]);
if (String(ended) !== "0,") failures.push(`after SIGTERM: ${ended}`);
server.kill("SIGKILL");
await Promise.all(busy);
if (said.trim().split("\n").length !== 2) failures.push(`standard error: ${said}`);
if (counts.right === 0) failures.push("no good request was answered");

console.log(JSON.stringify({ ...counts, memory }));
for (const failure of new Set(failures)) console.error(`FAILED: ${failure}`);
process.exit(failures.length === 0 ? 0 : 1);
