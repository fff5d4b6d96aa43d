// Checks what linters don't: words that the glossary rules out (scripts/words.txt), and environment variables that
// CONTRIBUTING.md doesn't list.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

const TEXT = /\.(md|ts|mjs|js|rs|wgsl|sh|py|html|yml|toml)$|^\.ci\//;
/** Where any word may be used: the glossary itself, licences, recorded outputs. */
const EXEMPT =
  /^(CONTRIBUTING\.md|scripts\/words\.txt|scripts\/check_text\.mjs|CHANGELOG\.md|test\/fixtures\/|models\/)/;
/** The project's own variables; others (HF_TOKEN, HTTPS_PROXY, …) are of the programs that define them. */
const VARIABLE = /\b(VIT_MSN_[A-Z_]+|FUZZ_RUNS|CHROME_PATH)\b/g;
/** Constants that only look like variables. */
const CONSTANTS = new Set(["VIT_MSN_PRESETS"]);

const files = execFileSync("git", ["ls-files", "-z"], { encoding: "utf8" })
  .split("\0")
  .filter((file) => TEXT.test(file) && !EXEMPT.test(file));
const words = readFileSync("scripts/words.txt", "utf8")
  .split("\n")
  .filter((line) => line !== "" && !line.startsWith("#"))
  .map((line) => line.split("\t"))
  .map(([pattern = "", instead = "", exempt]) => ({
    pattern: new RegExp(pattern, "i"),
    instead,
    exempt: exempt === undefined ? undefined : new RegExp(exempt),
  }));
const listed = new Set(readFileSync("CONTRIBUTING.md", "utf8").match(VARIABLE));

/** @type {string[]} */
const complaints = [];
for (const file of files) {
  const lines = readFileSync(file, "utf8").split("\n");
  for (const [i, line] of lines.entries()) {
    for (const { pattern, instead, exempt } of words) {
      if (exempt?.test(file)) continue;
      const [found] = pattern.exec(line) ?? [];
      if (found !== undefined) complaints.push(`${file}:${i + 1}: "${found}": write "${instead}"`);
    }
    for (const [name] of line.matchAll(VARIABLE)) {
      if (!listed.has(name) && !CONSTANTS.has(name))
        complaints.push(`${file}:${i + 1}: ${name} isn't in CONTRIBUTING.md's list of environment variables`);
    }
  }
}
for (const complaint of complaints) console.error(complaint);
if (complaints.length > 0) {
  console.error(`${complaints.length} complaints.`);
  process.exitCode = 1;
}
