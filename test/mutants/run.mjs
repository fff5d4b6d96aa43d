// Mutation testing: npm run mutants -- [AREA...] [--sample 40] [--seed 1] [--lanes 1]
//
// Tests the tests: changes the code in one place at a time and runs the tests that answer for it (areas.mjs). A mutant
// that no test notices survives; either a test is missing or the change makes no difference. Stryker's instrumenter puts
// all mutants of an area into a copy of the repository, which is bundled once; an environment variable chooses one. Each
// test file runs once without a mutant, to record which mutants' code it runs: only those can it notice.
// Results: .out/mutants/report.json, with the place of each survivor. For Rust, see CONTRIBUTING.md (cargo-mutants).
import { spawn, spawnSync } from "node:child_process";
import { cp, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { Instrumenter } from "@stryker-mutator/instrumenter";
import { AREAS } from "./areas.mjs";

/** @typedef {import("./areas.mjs").Area} Area */
/** @typedef {{ id: string, file: string, line: number, kind: string, replacement: string }} Mutant */
/** @typedef {"killed" | "timed out" | "survived"} Verdict */
/** @typedef {{ path: string, ms: number, reached: Set<string> }} TestFile */

const out = resolve(".out/mutants");
/** The texts of messages and lists of names aren't behaviour that each test should repeat. */
const EXCLUDED = ["StringLiteral", "ObjectLiteral", "ArrayDeclaration", "Regex", "OptionalChaining"];
/** A mutant may loop for ever; this many times the unchanged tests' time is enough for any that doesn't. */
const PATIENCE = 5;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    sample: { type: "string", default: "40" },
    seed: { type: "string", default: "1" },
    lanes: { type: "string", default: "1" },
  },
});
const [sample, seed, lanes] = [Number(values.sample), Number(values.seed), Number(values.lanes)];
const unknown = positionals.filter((name) => !AREAS.some((area) => area.name === name));
if (unknown.length > 0 || !(sample > 0) || !Number.isInteger(seed) || !(lanes > 0)) {
  console.error(`Usage: npm run mutants -- [AREA...] [--sample N] [--seed N] [--lanes N]
Areas: ${AREAS.map(({ name }) => name).join(", ")}`);
  process.exit(2);
}

/** @type {Record<string, { killed: number, survived: Mutant[], mutants: number }>} */
const report = {};
for (const area of AREAS.filter(({ name }) => positionals.length === 0 || positionals.includes(name))) {
  const { all, tested } = await test_area(area);
  const survived = tested.filter(({ verdict }) => verdict === "survived").map(({ mutant }) => mutant);
  const killed = tested.length - survived.length;
  report[area.name] = { killed, survived, mutants: all };
  const share = ((100 * killed) / tested.length).toFixed(0);
  console.log(`${area.name}: ${killed} of ${tested.length} killed, ${share} % (${all} mutants in all)`);
  await writeFile(join(out, "report.json"), JSON.stringify({ seed, sample, areas: report }, undefined, 2));
}

/** @param {Area} area */
async function test_area(area) {
  const folder = join(out, area.name);
  await copy_repository(folder);
  const mutants = await instrument(folder, area.code);
  run_or_throw(process.execPath, ["scripts/bundle.mjs"], folder);
  const files = await measure_tests(folder, area);
  /** @type {{ mutant: Mutant, verdict: Verdict }[]} */
  const tested = [];
  await in_lanes(choose(mutants, sample, seed), async (mutant) => {
    // The quickest first: most mutants are killed by them.
    const answering = files.filter(({ reached }) => reached.has(mutant.id)).sort((a, b) => a.ms - b.ms);
    /** @type {Verdict} */
    let verdict = "survived";
    for (const { path, ms } of answering) {
      verdict = await run_test(
        folder,
        path,
        { __STRYKER_ACTIVE_MUTANT__: mutant.id },
        PATIENCE * ms + 30_000,
      );
      if (verdict !== "survived") break;
    }
    tested.push({ mutant, verdict });
    const place = `${mutant.file}:${mutant.line} ${mutant.kind} → ${shorten(mutant.replacement)}`;
    console.log(`  ${verdict}${answering.length === 0 ? " (no test runs it)" : ""}: ${place}`);
  });
  return { all: mutants.length, tested };
}

/** Runs each test file without a mutant. @param {string} folder @param {Area} area @returns {Promise<TestFile[]>} */
async function measure_tests(folder, area) {
  const prefixes = area.tests.map((test) => `test/${test}`);
  const paths = run_or_throw("git", ["ls-files", "test"], ".")
    .split("\n")
    .filter((path) => path.endsWith(".test.ts") && prefixes.some((prefix) => path.startsWith(prefix)));
  const preload = join(folder, "test/mutants/coverage.cjs");
  /** @type {TestFile[]} */
  const files = [];
  await in_lanes(paths, async (path) => {
    const record = join(folder, `coverage-${files.length}-${path.replaceAll("/", "-")}.txt`);
    await writeFile(record, "");
    const start = performance.now();
    const env = { NODE_OPTIONS: `--require ${preload}`, MUTANT_COVERAGE: record };
    if ((await run_test(folder, path, env, Number.POSITIVE_INFINITY)) !== "survived")
      throw new Error(`${path} fails without a mutant; see ${folder}.`);
    const reached = new Set((await readFile(record, "utf8")).split("\n"));
    files.push({ path, ms: performance.now() - start, reached });
  });
  return files;
}

/** @template T @param {T[]} items @param {(item: T) => Promise<void>} work */
async function in_lanes(items, work) {
  const waiting = [...items];
  await Promise.all(
    Array.from({ length: lanes }, async () => {
      for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) await work(item);
    }),
  );
}

/** What git knows, with what is built; modules are linked. @param {string} folder */
async function copy_repository(folder) {
  await rm(folder, { recursive: true, force: true });
  const tracked = run_or_throw("git", ["ls-files", "-co", "--exclude-standard", "-z"], ".").split("\0");
  for (const path of tracked.filter((path) => path !== "")) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await cp(path, join(folder, path));
  }
  for (const path of run_or_throw("git", ["ls-files", "-oi", "--exclude-standard", "-z", "ts"], ".").split(
    "\0",
  ))
    if (path !== "") await cp(path, join(folder, path), { recursive: true });
  await symlink(resolve("node_modules"), join(folder, "node_modules"));
}

/** @param {string} folder @param {RegExp} code @returns {Promise<Mutant[]>} */
async function instrument(folder, code) {
  const names = run_or_throw("git", ["ls-files", "ts"], ".").split("\n");
  const files = await Promise.all(
    names
      .filter((name) => code.test(name) && !name.endsWith(".d.ts"))
      .map(async (name) => ({ name, content: await readFile(name, "utf8"), mutate: true })),
  );
  const silent = new Proxy({}, { get: () => () => false });
  const instrumenter = new Instrumenter(/** @type {any} */ (silent));
  const result = await instrumenter.instrument(files, {
    plugins: [],
    excludedMutations: EXCLUDED,
    ignorers: [],
  });
  for (const { name, content } of result.files) await writeFile(join(folder, name), content);
  return result.mutants
    .filter(({ status }) => status === undefined)
    .map(({ id, fileName, location, mutatorName, replacement }) => ({
      id,
      file: fileName,
      line: location.start.line + 1,
      kind: mutatorName,
      replacement,
    }));
}

/** @param {string} folder @param {string} path @param {Record<string, string>} env @param {number} limit_ms */
async function run_test(folder, path, env, limit_ms) {
  const child = spawn(
    process.execPath,
    ["node_modules/vitest/vitest.mjs", "run", "--project", "node", "--bail", "1", "--reporter=dot", path],
    {
      cwd: folder,
      detached: true,
      stdio: "ignore",
      env: { ...process.env, ...env },
    },
  );
  let timed_out = false;
  const timer = Number.isFinite(limit_ms)
    ? setTimeout(() => {
        timed_out = true;
        end_group(child.pid);
      }, limit_ms)
    : undefined;
  const code = await new Promise((resolve) => child.once("exit", resolve));
  clearTimeout(timer);
  // Programs that a failed test left behind.
  end_group(child.pid);
  /** @type {Verdict} */
  const verdict = timed_out ? "timed out" : code === 0 ? "survived" : "killed";
  return verdict;
}

/** @param {number | undefined} pid */
function end_group(pid) {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}

/** @param {Mutant[]} mutants @param {number} count @param {number} seed @returns {Mutant[]} */
function choose(mutants, count, seed) {
  const order = mutants.map((mutant, i) => ({ mutant, key: mix(seed * 0x9e3779b1 + i) }));
  return order
    .sort((a, b) => a.key - b.key)
    .slice(0, count)
    .map(({ mutant }) => mutant);
}

/** splitmix32. @param {number} x */
function mix(x) {
  let z = (x + 0x9e3779b9) | 0;
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
  return (z ^ (z >>> 15)) >>> 0;
}

/** @param {string} text */
function shorten(text) {
  const line = text.replace(/\s+/g, " ");
  return line.length > 80 ? `${line.slice(0, 80)}…` : line;
}

/** @param {string} program @param {string[]} args @param {string} cwd */
function run_or_throw(program, args, cwd) {
  const { status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: "utf8", maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} failed:\n${stderr}`);
  return stdout;
}
