// The licences of what the package contains besides its own code: npm packages in the command line, and the crates that
// are compiled into the engine.
import { execFileSync } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

const LICENCE_FILE = /^(licen[cs]e|copying|unlicense)([-._].*)?$/i;

/**
 * All licences as one text.
 * @param {readonly string[]} inputs the files that were bundled into the command line.
 */
export async function third_party_licences(inputs) {
  const names = inputs.flatMap((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []);
  const packages = await Promise.all([...new Set(names)].sort().map(package_of));
  const crates = await Promise.all(compiled_crates().map(crate_of));
  const sections = [
    "dist/cli.js contains these npm packages; the readers of lists (dist/parquet*.js, dist/table.web.js) contain hyparquet:",
    ...by_text(packages),
    "The engine (dist/*.wasm) contains Rust's standard library (MIT OR Apache-2.0) and these crates:",
    ...by_text(crates),
  ];
  return `${sections.join("\n\n")}\n`;
}

/** @typedef {{ name: string, text: string }} Licensed */

/** Many have the very same text, which is written once, below all their names. @param {readonly Licensed[]} licensed */
function by_text(licensed) {
  /** @type {Map<string, string[]>} */
  const names = new Map();
  for (const { name, text } of licensed) names.set(text, [...(names.get(text) ?? []), name]);
  return [...names].map(([text, of]) =>
    `${of.map((name) => `---- ${name}`).join("\n")}\n\n${text}`.trimEnd(),
  );
}

/** @param {string} name @returns {Promise<Licensed>} */
async function package_of(name) {
  const text = await licence_in(join("node_modules", name));
  if (text === "") throw new Error(`The bundled package ${name} has no licence file.`);
  return { name, text };
}

/** @typedef {{ id: string, name: string, version: string, license: string | null, manifest_path: string, source: string | null,
 *   targets: { kind: string[] }[] }} Crate */

/** Some crates name their licence without carrying its text. @param {Crate} crate @returns {Promise<Licensed>} */
async function crate_of({ name, version, license, manifest_path }) {
  const text = await licence_in(dirname(manifest_path));
  return { name: `${name} ${version} (${license ?? "see below"})`, text };
}

/** Every licence file of a folder. @param {string} folder */
async function licence_in(folder) {
  const names = (await readdir(folder)).filter((name) => LICENCE_FILE.test(name)).sort();
  const texts = await Promise.all(names.map((name) => readFile(join(folder, name), "utf8").catch(() => "")));
  return texts
    .map((text) => text.trim())
    .filter((text) => text !== "")
    .join("\n\n");
}

/** What either engine is linked with: not what only runs while it is compiled, such as macros. @returns {Crate[]} */
function compiled_crates() {
  const options = [
    "--format-version=1",
    "--locked",
    "--all-features",
    "--filter-platform=wasm32-unknown-unknown",
  ];
  const metadata = JSON.parse(
    execFileSync("cargo", ["metadata", ...options], { encoding: "utf8", maxBuffer: 1 << 28 }),
  );
  /** @type {Map<string, Crate>} */
  const crates = new Map(metadata.packages.map((/** @type {Crate} */ crate) => [crate.id, crate]));
  /** @type {Map<string, { deps: { pkg: string, dep_kinds: { kind: string | null }[] }[] }>} */
  const nodes = new Map(metadata.resolve.nodes.map((/** @type {{ id: string }} */ node) => [node.id, node]));
  const linked = new Set();
  const visit = (/** @type {string} */ id) => {
    const crate = crates.get(id);
    if (linked.has(id) || crate?.targets.some(({ kind }) => kind.includes("proc-macro"))) return;
    linked.add(id);
    for (const { pkg, dep_kinds } of nodes.get(id)?.deps ?? [])
      if (dep_kinds.some(({ kind }) => kind === null)) visit(pkg);
  };
  for (const { id, name } of crates.values()) if (name === "vit-msn-wasm") visit(id);
  return [...linked]
    .flatMap((id) => crates.get(id) ?? [])
    .filter(({ source }) => source !== null)
    .sort((a, b) => a.name.localeCompare(b.name));
}
