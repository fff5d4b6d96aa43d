import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { beforeAll, describe, expect, test } from "vitest";
import { vit_msn } from "../support/cli.ts";

const run = promisify(execFile);

describe("vit-msn completion", () => {
  let script: string;
  beforeAll(async () => {
    script = (await vit_msn(["completion", "bash"])).stdout;
  });

  /** What bash offers for the last word. */
  async function offered(...words: string[]): Promise<string[]> {
    const line = ["vit-msn", ...words].map((word) => `'${word}'`).join(" ");
    const ask = `COMP_WORDS=(${line}); COMP_CWORD=${words.length}; _vit_msn; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout } = await run("bash", ["-c", `${script}\n${ask}`]);
    return stdout.trim().split("\n").filter(Boolean);
  }

  test("bash completes commands, options and their choices", async () => {
    expect(await offered("")).toEqual(expect.arrayContaining(["classify", "embed", "serve", "completion"]));
    expect(await offered("em")).toEqual(["embed"]);
    expect(await offered("embed", "--po")).toEqual(["--pool"]);
    expect(await offered("embed", "--pool", "")).toEqual(["cls", "mean"]);
    expect(await offered("classify", "--dtype", "int")).toEqual(["int8"]);
    expect(await offered("train", "--num-train")).toEqual(["--num-train-epochs"]);
    expect(await offered("completion", "")).toEqual(["bash", "zsh", "fish"]);
  });

  test("bash leaves files to its own completion", async () => {
    expect(await offered("embed", "photos")).toEqual([]);
    expect(await offered("embed", "--output", "")).toEqual([]);
  });

  test.each(["zsh", "fish"])("%s gets every command and its options", async (shell) => {
    const { code, stdout } = await vit_msn(["completion", shell]);
    expect(code).toBe(0);
    for (const name of ["classify", "embed", "few-shot", "similar", "train", "pretrain", "serve"])
      expect(stdout).toContain(name);
    expect(stdout).toMatch(
      shell === "zsh" ? /'\*--pool\[.*\]:value:\(cls mean\)'/ : /-l pool -r -f -a 'cls mean'/,
    );
  });

  test("another shell is wrong usage", async () => {
    const { code, stderr } = await vit_msn(["completion", "tcsh"]);
    expect(code).toBe(2);
    expect(stderr).toContain("bash, zsh, fish");
  });
});
