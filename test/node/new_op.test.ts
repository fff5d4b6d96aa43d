import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, beforeEach, describe, expect, it, test } from "vitest";

const EDITED = [
  "crates/tensor/src/tensor_ops.rs",
  "crates/cpu/src/backend.rs",
  "crates/cpu/src/lib.rs",
  "crates/gpu/src/lib.rs",
  "crates/gpu/src/kernels/mod.rs",
  "ts/engine/engine.ts",
  "ts/engine/worker/remote_ops.ts",
  "ts/training/tape.ts",
];
const CREATED = [
  "crates/cpu/src/double_it.rs",
  "crates/gpu/src/kernels/double_it.rs",
  "crates/gpu/src/kernels/double_it.wgsl",
];
const SCRIPT = resolve("scripts/new_op.mjs");

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "new-op-"));
  for (const file of [...EDITED, "ts/engine/training_engine.ts"]) cpSync(file, join(folder, file));
});
afterEach(() => rmSync(folder, { recursive: true }));

const read = (file: string) => readFileSync(join(folder, file), "utf8");
const generate = (name: string) =>
  execFileSync(process.execPath, [SCRIPT, name], { cwd: folder, encoding: "utf8" });

/** The lines of a file that the generator added; it must have changed no other. */
function added_lines(file: string): string[] {
  const before = readFileSync(file, "utf8").split("\n");
  const added: string[] = [];
  let next = 0;
  for (const line of read(file).split("\n")) {
    if (line === before[next]) next++;
    else added.push(line);
  }
  expect(next, file).toBe(before.length);
  return added;
}

/** The lines from the one that begins with `head` to the one that closes its block. */
function block(file: string, head: string): string {
  const text = read(file);
  const start = text.indexOf(`\n${head}`);
  return text.slice(start, text.indexOf("\n}", start + 1));
}

describe("a new op", () => {
  it("is inserted into each file, in its block, and changes nothing else", () => {
    const printed = generate("double_it");
    for (const file of [...EDITED, ...CREATED]) expect(printed).toContain(file);
    for (const file of EDITED) expect(added_lines(file).join("\n"), file).toContain("double_it");
    expect(block("crates/tensor/src/tensor_ops.rs", "macro_rules!")).toContain("            double_it(x);");
    expect(block("crates/cpu/src/backend.rs", "impl Backend for Cpu")).toContain("    fn double_it(");
    expect(block("ts/engine/engine.ts", "export interface Engine ")).toContain(
      "\n  double_it(x: TensorHandle)",
    );
    expect(block("ts/engine/worker/remote_ops.ts", "export const OPS")).toContain("\n  double_it: {");
    expect(block("ts/training/tape.ts", "export class Tape")).toContain("\n  double_it(x: TensorHandle)");
  });

  it("edits at most eight files", () => {
    expect(EDITED.length).toBeLessThanOrEqual(8);
    expect(
      generate("double_it")
        .split("edited")[1]
        ?.match(/\S+\/\S+\.(rs|ts)/g)
        ?.sort(),
    ).toEqual([...EDITED].sort());
  });

  it("has kernels for both backends, each with a test", () => {
    generate("double_it");
    for (const file of CREATED.slice(0, 2)) {
      expect(read(file)).toContain("pub fn double_it(");
      expect(read(file)).toContain("fn double_it_matches_the_definition(");
    }
    expect(read("crates/gpu/src/kernels/double_it.wgsl")).toMatch(/^\/\/ double_it: .*\n\/\/\n\/\/ Layout/);
  });

  test.each(["abs_first", "double_it", "test_after", "zeta"])(
    "%s becomes a module in rustfmt's order",
    (name) => {
      generate(name);
      for (const [file, head] of [
        ["crates/cpu/src/lib.rs", "mod "],
        ["crates/gpu/src/kernels/mod.rs", "pub mod "],
      ] as const) {
        const lines = read(file).split("\n");
        const modules = lines.filter((line) => line.startsWith(head));
        expect(modules).toContain(`${head}${name};`);
        expect(modules).toEqual([...modules].sort());
      }
      expect(read("crates/cpu/src/lib.rs")).toContain("#[cfg(test)]\nmod test_support;");
      const statements = read("crates/gpu/src/lib.rs").match(/^pub use [^;]*;$/gm) as string[];
      expect(statements).toContain(`pub use kernels::${name}::${name};`);
      expect(statements).toEqual([...statements].sort());
    },
  );

  test("two ops can be added one after the other", () => {
    generate("double_it");
    generate("halve_it");
    for (const file of EDITED)
      for (const name of ["double_it", "halve_it"]) expect(read(file), file).toContain(name);
  });

  test.each([
    ["DoubleIt", "snake_case"],
    ["double-it", "snake_case"],
    ["double__it", "snake_case"],
    ["2_x", "snake_case"],
    ["../x", "snake_case"],
    ["", "snake_case"],
    ["match", "keyword"],
    ["layer_norm", "already has"],
    ["adamw_step", "already has"],
    ["attention", "already has"],
    ["free", "already has"],
    ["parameter_bytes", "already has"],
  ])("the name %j is refused, and nothing is written", (name, reason) => {
    const { status, stderr } = spawnSync(process.execPath, [SCRIPT, name], { cwd: folder, encoding: "utf8" });
    expect(status).toBe(1);
    expect(stderr).toContain(reason);
    for (const file of EDITED) expect(added_lines(file)).toEqual([]);
    expect(readdirSync(join(folder, "crates/cpu/src")).sort()).toEqual(["backend.rs", "lib.rs"]);
    expect(readdirSync(join(folder, "crates/gpu/src/kernels"))).toEqual(["mod.rs"]);
  });

  it("is refused a second time", () => {
    generate("double_it");
    const { status, stderr } = spawnSync(process.execPath, [SCRIPT, "double_it"], {
      cwd: folder,
      encoding: "utf8",
    });
    expect(status).toBe(1);
    expect(stderr).toContain("already has");
  });
});
