// node scripts/machine_code/main.mjs [--write] [PATTERN]: compares the machine code of every kernel of a forward with
// its budget, crates/gpu/machine_code.txt. The kernels come from planning streams (crates/gpu/examples/machine_code);
// naga and Dawn's compiler translate them, and Mesa's RADV compiles both for AMD GPUs, none of which has to be there.
// Prints what differs as a table and fails where code got worse; --write records what is. PATTERN restricts both to
// kernels whose names contain it.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { count } from "./count.mjs";

/** What Mesa's versions call two generations of GPUs. */
const FAMILIES = { "RDNA 3": ["navi31", "gfx1100"], "RDNA 2": ["navi21"] };
const COMPILERS = ["Dawn", "naga"];
const COLUMNS = COMPILERS.flatMap((compiler) =>
  Object.keys(FAMILIES).map((family) => `${compiler}, ${family}`),
);
const BUDGET = "crates/gpu/machine_code.txt";
const HEAD = `# What RADV makes of each kernel: registers of a lane, bytes of shared memory, instructions that a wave issues for a
# tile (K = 384, 197 tokens), and the percentage of multiply-adds among them. Nothing spills or uses scratch memory.
# scripts/machine_code/main.mjs compares and writes it.`;
/** Other versions of Mesa schedule differently: then instructions may exceed the budget by this factor, and spills are only printed. */
const OTHER_VERSION = 1.25;
const ICDS = process.env.VIT_MSN_VULKAN_DRIVERS ?? "/usr/share/vulkan/icd.d";

/** @typedef {{ registers: number, shared: number, issued: number, share: number }} Cell */

const root = fileURLToPath(new URL("../../", import.meta.url));
process.chdir(root);
const folder = ".out/machine_code";

/** How often loops run, from the outermost in. Other kernels count each instruction once. @param {string} name */
function trips(name) {
  const constant = (/** @type {string} */ key) => Number(new RegExp(` ${key}=(\\d+)`).exec(name)?.[1]);
  const depth = constant("DEPTH_VECS");
  if (name.includes("+linear_staged+")) return [384 / 4 / depth, depth];
  if (name.includes("+linear_packed+")) return [384 / 16 / depth, depth / 2];
  // Both inner loops have four turns.
  if (name.includes("+attention_tiled ")) return [Math.ceil(197 / constant("ACROSS") / constant("EACH")), 4];
  return [];
}

/** @param {string} icd */
function driver(icd) {
  const suffixes = ["", ".x86_64", ".aarch64"];
  return suffixes.map((suffix) => `${ICDS}/${icd}_icd${suffix}.json`).find(existsSync);
}

/** What is missing here. */
function missing() {
  if (driver("radeon") === undefined || driver("lvp") === undefined) return "mesa-vulkan-drivers";
  if (spawnSync("spirv-as", ["--version"]).status !== 0) return "spirv-tools";
  return undefined;
}

/** @param {string[]} args @param {Record<string, string | undefined>} env */
function example(args, env) {
  const command = [
    "run",
    "--quiet",
    "--profile",
    "test",
    "-p",
    "vit-msn-gpu",
    "--example",
    "machine_code",
    "--",
    ...args,
  ];
  return execFileSync("cargo", command, {
    encoding: "utf8",
    maxBuffer: 1 << 28,
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, ...env },
  });
}

/** Writes the SPIR-V that Dawn makes of each file, if it takes this machine's lavapipe. @param {string[]} files */
function translate_by_dawn(files) {
  const program = fileURLToPath(new URL("dawn.mjs", import.meta.url));
  const env = { ...process.env, VK_ICD_FILENAMES: driver("lvp") };
  const { stdout, stderr, status } = spawnSync("node", [program, ...files], {
    encoding: "utf8",
    maxBuffer: 1 << 30,
    env,
  });
  if (stderr.includes("no adapter")) return false;
  if (status !== 0) throw new Error(`Dawn refuses a kernel:\n${stderr.slice(-2000)}`);
  for (const part of stdout.split("\n@@ ").slice(1)) {
    const file = part.slice(0, part.indexOf("\n"));
    const dump = /\/\* Dumped SPIRV disassembly \*\/\n([\s\S]*?)(?=\n(?:info|warning):|\n*$)/.exec(part)?.[1];
    if (dump === undefined) throw new Error(`Dawn printed no SPIR-V for ${file}`);
    // What the driver gets, without an extension that spirv-as doesn't know yet and with the others' name.
    const text = dump
      .split("\n")
      .filter((line) => !/maximal_reconvergence|MaximallyReconverges/.test(line))
      .join("\n")
      .replace('"dawn_entry_point"', '"main"');
    const output = file.replace(/wgsl$/, "dawn.spv");
    execFileSync("spirv-as", ["--target-env", "spv1.4", "-", "-o", output], { input: text });
  }
  return true;
}

/** @param {string[]} files @param {string[]} names of the family */
function compile(files, names) {
  const [head, ...lines] = run_radv(files, names).trim().split("\n");
  const version = /Mesa \d+\.\d+\.\d+/.exec(head ?? "")?.[0] ?? "an unknown version";
  const statistics = new Map();
  for (const line of lines) {
    const [file, ...values] = line.split(" ");
    const pairs = values.map((value) => /** @type {[string, string]} */ (value.split("=")));
    statistics.set(file, new Map(pairs.map(([name, value]) => [name, Number(value)])));
  }
  return { version, statistics };
}

/** Mesa ends the process if it doesn't know a name. @param {string[]} files @param {string[]} names */
function run_radv(files, names) {
  const env = { VK_ICD_FILENAMES: driver("radeon"), MESA_SHADER_CACHE_DISABLE: "true" };
  for (const [at, name] of names.entries())
    try {
      return example(["compile", ...files], { ...env, RADV_FORCE_FAMILY: name });
    } catch (error) {
      if (at === names.length - 1) throw error;
    }
  throw new Error("A family without a name");
}

/** @param {string} name @param {string} assembly @param {Map<string, number>} statistics @returns {Cell} */
function cell(name, assembly, statistics) {
  const wrong = ["Spilled_SGPRs", "Spilled_VGPRs", "Scratch_size"].filter(
    (key) => (statistics.get(key) ?? 0) > 0,
  );
  for (const key of wrong) faults.push(`${name}: ${key} ${statistics.get(key)}`);
  const { issued, products } = count(assembly, trips(name));
  return {
    registers: statistics.get("VGPRs") ?? 0,
    shared: statistics.get("LDS_size") ?? 0,
    issued,
    share: Math.round((100 * products) / issued),
  };
}

const show = (/** @type {Cell | undefined} */ cell) =>
  cell === undefined ? "" : `${cell.registers} ${cell.shared} ${cell.issued} ${cell.share}%`;

/** The cells of each kernel. */
function read_budget() {
  const [version = "", ...lines] = existsSync(BUDGET)
    ? readFileSync(BUDGET, "utf8")
        .split("\n")
        .filter((line) => line !== "" && !line.startsWith("# "))
    : [];
  const budget = new Map(
    lines.map((line) => {
      const [name = "", ...cells] = line.split(" | ");
      const numbers = cells.map((text) => text.split(" ").map(Number.parseFloat));
      return [
        name,
        numbers.map(([registers = 0, shared = 0, issued = 0, share = 0]) => ({
          registers,
          shared,
          issued,
          share,
        })),
      ];
    }),
  );
  return { version, budget };
}

/** @type {string[]} */
const faults = [];

function measure() {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const names = example(["modules", folder], { VK_ICD_FILENAMES: driver("lvp") })
    .trim()
    .split("\n");
  const kernels = names
    .map((line) => ({ index: line.slice(0, line.indexOf(" ")), name: line.slice(line.indexOf(" ") + 1) }))
    .filter(({ name }) => name.includes(pattern));
  const with_dawn = translate_by_dawn(kernels.map(({ index }) => `${folder}/${index}.wgsl`));
  if (!with_dawn) console.log("What Dawn makes of the kernels is not tested: it needs a newer Mesa.");
  /** @type {Map<string, (Cell | undefined)[]>} */
  const found = new Map(kernels.map(({ name }) => [name, []]));
  let version = "";
  for (const compiler of COMPILERS)
    for (const family of Object.values(FAMILIES)) {
      if (compiler === "Dawn" && !with_dawn) {
        for (const cells of found.values()) cells.push(undefined);
        continue;
      }
      const files = kernels.map(({ index }) => `${folder}/${index}.${compiler.toLowerCase()}.spv`);
      const { statistics, ...driver } = compile(files, family);
      version = driver.version;
      for (const [at, { name }] of kernels.entries())
        found
          .get(name)
          ?.push(
            cell(
              name,
              readFileSync(`${files[at]}.s`, "utf8"),
              statistics.get(/** @type {string} */ (files[at])),
            ),
          );
    }
  return { version, found };
}

/** @param {Cell} before @param {Cell} after @param {number} factor */
function is_worse(before, after, factor) {
  if (factor > 1) return after.issued > factor * before.issued;
  return (
    after.registers > before.registers ||
    after.shared > before.shared ||
    after.issued > before.issued ||
    after.share < before.share
  );
}

const absent = missing();
const pattern = process.argv.slice(2).find((argument) => !argument.startsWith("--")) ?? "";
if (absent !== undefined) {
  console.log(`The kernels' machine code is not tested: install ${absent}.`);
  process.exit(process.env.CI ? 1 : 0);
}
const { version, found } = measure();
const recorded = read_budget();
const writes = process.argv.includes("--write");
const factor = recorded.version === version ? 1 : OTHER_VERSION;
if (factor > 1 && !writes) console.log(`The budget is for ${recorded.version}, and this is ${version}.`);
const rows = [];
for (const name of [...new Set([...recorded.budget.keys(), ...found.keys()])].sort()) {
  if (!name.includes(pattern)) continue;
  const [before, after] = [recorded.budget.get(name) ?? [], found.get(name) ?? []];
  for (const [at, column] of COLUMNS.entries()) {
    const [old, now] = [before[at], after[at]];
    // Not measured here.
    if (now === undefined && after.length > 0) continue;
    if (show(old) === show(now)) continue;
    const worse = old === undefined || now === undefined || is_worse(old, now, factor);
    if (worse || factor === 1)
      rows.push(`| ${name} | ${column} | ${show(old)} | ${show(now)} | ${worse ? "yes" : ""} |`);
    if (worse && !writes) process.exitCode = 1;
  }
}
if (rows.length > 0)
  console.log(
    ["| kernel | compiler, GPU | budget | now | worse |", "|---|---|---|---|---|", ...rows].join("\n"),
  );
for (const fault of faults) console.log(`Registers don't suffice: ${fault}`);
// Other versions assign registers in other ways: Mesa 22.3 spills four of a float16 kernel that 25.0 doesn't spill.
if (faults.length > 0 && recorded.version === version) process.exitCode = 1;
if (process.exitCode === 1)
  console.log("If this is what you want: node scripts/machine_code/main.mjs --write");
if (writes) {
  const all = new Map([...[...recorded.budget].filter(([name]) => !name.includes(pattern)), ...found]);
  const lines = [...all]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, cells]) => [name, ...cells.map(show)].join(" | "));
  writeFileSync(BUDGET, `${[HEAD, `# kernel | ${COLUMNS.join(" | ")}`, version, ...lines].join("\n")}\n`);
}
console.log(`${found.size} kernels, ${COLUMNS.length} times each`);
