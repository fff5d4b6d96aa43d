import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { root, vit_msn } from "../support/cli.ts";
import { skipped } from "../support/skips.ts";

const BOOT = "models/fashion/pictures/9-ankle-boot.png";
const BAG = "models/fashion/pictures/8-bag.png";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "vit-msn-cli-"));
});
afterAll(() => rm(folder, { recursive: true }));

describe("vit-msn classify", () => {
  test("prints a table of labels and scores, and nothing else to standard output", async () => {
    const { code, stdout, stderr } = await vit_msn(["classify", BOOT, BAG, "--top-k", "2"]);
    expect([code, stderr]).toEqual([0, ""]);
    const [heading, first, , second, ...rest] = stdout.split("\n");
    expect(heading).toMatch(/^image +score +label$/);
    expect(first).toMatch(/^models\/fashion\/pictures\/9-ankle-boot\.png +0\.\d{4} +Ankle boot$/);
    expect(second).toMatch(/8-bag\.png +0\.\d{4} +Bag$/);
    expect(rest).toHaveLength(2);
  });

  test("--json prints one object a line", async () => {
    const { code, stdout } = await vit_msn(["classify", "--json", "-k", "3", BOOT, BAG]);
    expect(code).toBe(0);
    const lines = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ image }) => image)).toEqual([BOOT, BAG]);
    expect(lines[0].results).toHaveLength(3);
    expect(lines[0].results[0].label).toBe("Ankle boot");
  });

  test.skipIf(skipped(process.platform !== "linux", "only Linux has /dev/full")).each([
    ["classify", BOOT, "--json"],
    ["embed", BOOT],
    ["classify", "--help"],
  ])("a full disk behind standard output is a one-sentence error: %s %s", async (...words) => {
    const command = `"${process.execPath}" dist/cli.js ${words.join(" ")}`;
    const run = promisify(execFile)("bash", ["-c", `${command} > /dev/full; echo $?`], { cwd: root });
    expect(await run).toEqual({
      stdout: "1\n",
      stderr: expect.stringMatching(/^vit-msn: Standard output can't be written: ENOSPC.*\[IO\]\n$/),
    });
  });

  test("computes in int8", async () => {
    const { code, stdout } = await vit_msn(["classify", BOOT, "--dtype", "int8", "--json"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout).results[0].label).toBe("Ankle boot");
  });

  test("takes a model's folder, its options and an image from standard input", async () => {
    const args = [
      "classify",
      "-",
      "--model",
      "models/fashion",
      "--dtype",
      "float16",
      "--attn",
      "eager",
      "--json",
    ];
    const { code, stdout } = await vit_msn(args, { stdin: await readFile(join(root, BOOT)) });
    expect(code).toBe(0);
    expect(JSON.parse(stdout).results[0].label).toBe("Ankle boot");
  });

  test("downloads a model and images, and caches the model", async () => {
    const asked: string[] = [];
    const server = createServer(async (request, response) => {
      asked.push(request.url ?? "");
      try {
        response.end(await readFile(join(root, "models", request.url as string)));
      } catch {
        response.writeHead(404).end();
      }
    }).listen(0, "127.0.0.1");
    await new Promise((resolve) => server.once("listening", resolve));
    const host = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const args = ["classify", "--model", `${host}/fashion/`, "--cache-dir", folder, "--json"];
    const first = await vit_msn([...args, `${host}/fashion/pictures/8-bag.png`]);
    expect([first.code, JSON.parse(first.stdout).results[0].label]).toEqual([0, "Bag"]);
    expect(asked).toContain("/fashion/model.safetensors");
    server.close();
    const offline = await vit_msn([...args, "--local-files-only", BAG]);
    expect([offline.code, JSON.parse(offline.stdout).results[0].label]).toEqual([0, "Bag"]);
  });

  test("continues after an image that fails, and exits with 1", async () => {
    const broken = join(folder, "broken.png");
    await writeFile(broken, "<html>");
    const { code, stdout, stderr } = await vit_msn(["classify", broken, "missing.png", BOOT, "--json"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/broken\.png.*\[INVALID_IMAGE\]/);
    expect(stderr).toMatch(/missing\.png.*\[NOT_FOUND\]/);
    expect(JSON.parse(stdout).image).toBe(BOOT);
  });

  test("a model that isn't there is one sentence and exit code 1", async () => {
    const { code, stdout, stderr } = await vit_msn(["classify", BOOT, "--model", "./no-such-model"]);
    expect([code, stdout]).toEqual([1, ""]);
    expect(stderr.trim().split("\n")).toHaveLength(1);
    expect(stderr).toMatch(/^vit-msn: .*no-such-model.* \[NOT_FOUND\]$/m);
  });
});

describe("vit-msn embed", () => {
  test("prints one embedding a line, the same as the image's alone", async () => {
    const { code, stdout } = await vit_msn(["embed", BOOT, BAG]);
    expect(code).toBe(0);
    const lines = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ image, embedding }) => [image, embedding.length])).toEqual([
      [BOOT, 96],
      [BAG, 96],
    ]);
    const mean = await vit_msn(["embed", "--pool", "mean", BOOT]);
    expect(JSON.parse(mean.stdout).embedding).not.toEqual(lines[0].embedding);
  });
});

describe("usage", () => {
  test.each([[["--help"]], [["classify", "--help"]], [["embed", "--help"]], [["--version"]]])(
    "%o goes to standard output",
    async (args) => {
      const { code, stdout, stderr } = await vit_msn(args);
      expect([code, stderr]).toEqual([0, ""]);
      expect(stdout).toMatch(args[0] === "--version" ? /^\d+\.\d+\.\d+\n$/ : /Usage: vit-msn/);
    },
  );

  test.each([
    [[], "Usage"],
    [["classify"], "image"],
    [["paint", BOOT], "paint"],
    [["classify", BOOT, "--colour"], "--colour"],
    [["classify", BOOT, "--top-k", "0"], "positive integer"],
    [["classify", BOOT, "--dtype", "float64"], "float32"],
    [["classify", BOOT, "--num-threads", "many"], "positive integer"],
  ])("%o is wrong usage: exit code 2", async (args, word) => {
    const { code, stdout, stderr } = await vit_msn(args);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain(word);
  });

  describe("threads", () => {
    // Reports how many Workers the process has started. It runs in each of them, too.
    const program = `
      import threads from "node:worker_threads";
      import { syncBuiltinESMExports } from "node:module";
      let started = 0;
      threads.Worker = class extends threads.Worker {
        constructor(...given) { super(...given); started++; }
      };
      syncBuiltinESMExports();
      if (threads.isMainThread) process.on("exit", () => console.error("Workers: " + started));`;
    const node = ["--import", `data:text/javascript,${encodeURIComponent(program)}`];
    const cores = Math.min(availableParallelism(), 16);

    test.each([
      ["one for each core by default", [], cores],
      ["as --num-threads says", ["--num-threads", "3"], 3],
    ])("are %s, with the same result as one", async (_, options, threads) => {
      const alone = await vit_msn(["classify", BOOT, "--json", "--num-threads", "1"]);
      const shared = await vit_msn(["classify", BOOT, "--json", ...options], { node });
      // The calling thread is one, too.
      expect(shared).toEqual({ ...alone, code: 0, stderr: `Workers: ${threads - 1}\n` });
    });

    test.skipIf(skipped(process.platform !== "linux", "only Linux has taskset"))(
      "are no more than the cores that the process may use",
      async () => {
        const shell = ["taskset", "--cpu-list", "0"];
        expect((await vit_msn(["classify", BOOT, "--json"], { node, shell })).stderr).toBe("Workers: 0\n");
      },
    );
  });
});
