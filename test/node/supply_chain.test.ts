import { readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { describe, expect, it, test } from "vitest";

interface LockedPackage {
  link?: boolean;
  integrity?: string;
}

describe.each(["package-lock.json", "docs/package-lock.json", "test/typescript-5.5/package-lock.json"])(
  "%s",
  (file) => {
    it("has a hash for every package", () => {
      const { packages } = JSON.parse(readFileSync(file, "utf8")) as {
        packages: Record<string, LockedPackage>;
      };
      const without = Object.entries(packages).filter(([name, { link, integrity }]) => {
        return name !== "" && !link && !integrity?.startsWith("sha512-");
      });
      expect(without.map(([name]) => name)).toEqual([]);
    });
  },
);

describe("the engines' WebAssembly", () => {
  const engines = readdirSync("dist").filter((name) => name.endsWith(".wasm"));
  test.each(engines)("%s names no folder of the machine that built it", (name) => {
    const text = readFileSync(`dist/${name}`, "latin1");
    for (const folder of [homedir(), process.cwd(), ".rustup", ".cargo"]) expect(text).not.toContain(folder);
  });
});

describe("workflows", () => {
  const workflows = readdirSync(".github/workflows").map((name) => `.github/workflows/${name}`);
  test.each(workflows)("%s uses actions by commit", (file) => {
    const used = [...readFileSync(file, "utf8").matchAll(/uses: (\S+)/g)].map(([, action]) => action);
    expect(used).not.toEqual([]);
    for (const action of used) expect(action).toMatch(/@[0-9a-f]{40}$/);
  });

  it("don't let a job that runs dependencies' code publish", () => {
    const jobs = readFileSync(".github/workflows/release.yml", "utf8").split(/^ {2}(?=\w+:$)/m);
    const publishing = jobs.filter((job) => job.includes("id-token: write"));
    expect(publishing).toHaveLength(1);
    expect(publishing[0]).not.toMatch(/build\.sh|npm (ci|install)|cargo|checkout/);
  });
});
