import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const execute = promisify(execFile);
const modules = new URL("../../node_modules/", import.meta.url);

/** A JavaScript runtime other than the tests' own. */
export interface Runtime {
  name: "Node" | "Deno" | "Bun";
  version: string;
  /** Runs a program and gives what it printed; one that doesn't end by itself is an error. */
  run(
    program: string,
    args: readonly string[],
    cwd: string,
    variables?: NodeJS.ProcessEnv,
    timeout?: number,
  ): Promise<string>;
  /** The same with options of the runtime itself before the program. */
  run_with(
    options: readonly string[],
    program: string,
    args: readonly string[],
    cwd: string,
  ): Promise<string>;
}

/** Deno with only the permissions that models and images need, and the options given. */
export async function deno(...options: readonly string[]): Promise<Runtime> {
  const path = await binary("@deno", ["deno", "deno.exe"]);
  return runtime("Deno", path, [
    "run",
    "--quiet",
    "--no-prompt",
    "--allow-read",
    "--allow-env",
    "--allow-ffi",
    "--allow-sys",
    ...options,
  ]);
}

export async function bun(): Promise<Runtime> {
  return runtime("Bun", await binary("@oven", ["bin/bun", "bin/bun.exe"]), []);
}

/** The newest Node that build.sh installed in addition to the one that runs the tests; undefined where there is none. */
export async function newest_node(): Promise<Runtime | undefined> {
  const folder = new URL("../../.tools/", import.meta.url);
  const names = existsSync(folder) ? await readdir(folder) : [];
  const [newest] = names
    .filter((name) => existsSync(new URL(`${name}/bin/node`, folder)) && /^node-\d/.test(name))
    .sort()
    .reverse();
  return newest === undefined
    ? undefined
    : runtime("Node", fileURLToPath(new URL(`${newest}/bin/node`, folder)), []);
}

/** The Node that runs this. */
export function own_node(): Promise<Runtime> {
  return runtime("Node", process.execPath, []);
}

async function runtime(name: Runtime["name"], path: string, options: readonly string[]): Promise<Runtime> {
  const { stdout } = await execute(path, ["--version"]);
  return {
    name,
    version: /\d+(\.\d+)+/.exec(stdout)?.[0] ?? "",
    run: async (program, args, cwd, variables = {}, timeout = 180_000) => {
      const env = { ...process.env, ...variables };
      return (await execute(path, [...options, program, ...args], { cwd, env, timeout })).stdout;
    },
    run_with: async (more, program, args, cwd) =>
      (await execute(path, [...options, ...more, program, ...args], { cwd, timeout: 180_000 })).stdout,
  };
}

/** The binary in the scope's platform package: npm runs no install script, which would put it elsewhere. */
async function binary(scope: string, names: readonly string[]): Promise<string> {
  const folder = new URL(`${scope}/`, modules);
  const packages = existsSync(folder) ? await readdir(folder) : [];
  const urls = packages.flatMap((name) => names.map((file) => new URL(`${name}/${file}`, folder)));
  const url = urls.find((candidate) => existsSync(candidate));
  if (url === undefined)
    throw new Error(`node_modules/${scope} has no binary for this machine; npm install.`);
  return fileURLToPath(url);
}
