import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type PackedProject, packed_project, root } from "../support/packed.ts";

// examples/serve: without Docker, the Dockerfile's steps are carried out in an empty folder.

const run = promisify(execFile);
const EXAMPLE = join(root, "examples/serve");
let project: PackedProject;
let server: ChildProcess | undefined;

beforeAll(async () => {
  project = await packed_project(["sharp"]);
});
afterAll(async () => {
  server?.kill("SIGKILL");
  await project?.remove();
});

/** The instructions of a Dockerfile, its continued lines joined. */
async function instructions(): Promise<{ name: string; rest: string }[]> {
  const text = (await readFile(join(EXAMPLE, "Dockerfile"), "utf8")).replaceAll(/\\\n/g, " ");
  return text
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.startsWith("#"))
    .map((line) => {
      const [, name = "", rest = ""] = /^(\S+)\s+(.*)$/.exec(line) ?? [];
      return { name, rest };
    });
}

/** Carries out the steps under `folder` as root of the file system; stages share it. */
async function build(folder: string) {
  const at = (path: string) => join(folder, path);
  const env: Record<string, string> = {};
  let workdir = "/";
  let [entrypoint, user]: [string[], string] = [[], "root"];
  for (const { name, rest } of await instructions()) {
    if (name === "WORKDIR") {
      workdir = rest;
      await mkdir(at(workdir), { recursive: true });
    } else if (name === "COPY" && !rest.startsWith("--from=")) {
      const [from = "", to = ""] = rest.split(" ");
      await cp(join(EXAMPLE, from), join(at(workdir), to, from));
    } else if (name === "RUN" && rest.startsWith("npm install")) {
      // What npm would install, without downloading it.
      const { dependencies } = JSON.parse(await readFile(join(at(workdir), "package.json"), "utf8"));
      expect(Object.keys(dependencies)).toEqual(["vit-msn"]);
      await cp(join(project.folder, "node_modules"), join(at(workdir), "node_modules"), {
        recursive: true,
        verbatimSymlinks: true,
      });
    } else if (name === "RUN") {
      const command = rest.replaceAll(" /", ` ${folder}/`).replace(/ && chown \S+ \S+/, "");
      await run("sh", ["-c", command], { cwd: at(workdir) });
    } else if (name === "ENV")
      for (const pair of rest.split(" ")) {
        const [key = "", value = ""] = pair.split("=");
        env[key] = value.startsWith("/") ? at(value) : value;
      }
    else if (name === "USER") user = rest;
    else if (name === "ENTRYPOINT") entrypoint = JSON.parse(rest);
    else expect(["FROM", "COPY", "EXPOSE", "HEALTHCHECK"]).toContain(name);
  }
  return { env, workdir: at(workdir), entrypoint, user };
}

/** Every file with its size and time. */
async function files(folder: string): Promise<string[]> {
  const { stdout } = await run("find", [folder, "-printf", "%p %s %T@\n"]);
  return stdout.split("\n").toSorted();
}

test("the Dockerfile's steps give a server that answers and writes nothing", async () => {
  const folder = join(project.folder, "root");
  await mkdir(folder);
  const { env, workdir, entrypoint, user } = await build(folder);
  expect(user).not.toBe("root");
  const before = await files(folder);
  const [node = "", ...args] = entrypoint;
  expect(node).toBe("node");
  const child = spawn(process.execPath, [...args, "--port", "0", "--drain", "0"], {
    cwd: workdir,
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  server = child;
  let printed = "";
  const url = await new Promise<string>((resolve, reject) => {
    child.stderr.on("data", (text: Buffer) => {
      printed += text;
      const listening = /listening at http:\/\/0\.0\.0\.0:(\d+)/.exec(printed);
      if (listening) resolve(`http://127.0.0.1:${listening[1]}`);
    });
    child.once("exit", () => reject(new Error(printed)));
  });
  const body = new Uint8Array(await readFile(join(root, "models/fashion/pictures/8-bag.png")));
  const answer = await fetch(`${url}/classify?top_k=1`, { method: "POST", body });
  expect(await answer.json()).toMatchObject({ results: [{ label: "Bag" }] });
  expect((await fetch(`${url}/health`)).status).toBe(200);
  child.kill("SIGTERM");
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
  // Every line is JSON, requests included.
  const lines = printed
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.map(({ path }) => path)).toContain("/classify");
  expect(await files(folder)).toEqual(before);
});

test("the options in the other files exist", async () => {
  const { stdout: help } = await run(process.execPath, [join(root, "dist/cli.js"), "serve", "--help"]);
  const used = new Set<string>();
  for (const name of await readdir(EXAMPLE))
    if (/\.yaml$|\.service$/.test(name)) {
      const text = await readFile(join(EXAMPLE, name), "utf8");
      const of_server = text.split("\n").filter((line) => /command: \[--|args: \[|ExecStart/.test(line));
      expect(of_server.length, name).toBe(1);
      for (const [option] of of_server.join().matchAll(/--[a-z-]+/g)) used.add(option);
    }
  expect(used.size).toBeGreaterThan(4);
  for (const option of used) expect(help).toContain(option);
});
