import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { root } from "./packed.ts";

/** A workerd that serves. */
export interface RunningWorkerd {
  /** Its address, with a slash at its end. */
  url: string;
  /** Resident bytes now, and at their highest; undefined where the system doesn't report them. */
  memory(): Promise<{ now: number; peak: number } | undefined>;
  stop(): Promise<void>;
}

/** Starts workerd with a configuration file that has a socket "http". */
export async function start_workerd(config: string, variables: NodeJS.ProcessEnv): Promise<RunningWorkerd> {
  const args = ["serve", config, "--socket-addr=http=127.0.0.1:0", "--control-fd=3"];
  const child = spawn(await find_workerd(), args, {
    stdio: ["ignore", "pipe", "pipe", "pipe"],
    env: { ...process.env, ...variables },
  });
  let errors = "";
  child.stderr?.on("data", (text: Buffer) => (errors += text.toString()));
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const port = await new Promise<number>((resolve, reject) => {
    let told = "";
    child.stdio[3]?.on("data", (text: Buffer) => {
      told += text.toString();
      const event = /\{[^}]*"listen"[^}]*\}/.exec(told)?.[0];
      if (event !== undefined) resolve((JSON.parse(event) as { port: number }).port);
    });
    void ended.then(() => reject(new Error(`workerd ended: ${errors}`)));
  });
  return {
    url: `http://127.0.0.1:${port}/`,
    async memory() {
      const status = await readFile(`/proc/${child.pid}/status`, "utf8").catch(() => undefined);
      const bytes = (name: string) =>
        1024 * Number(new RegExp(`^${name}:\\s*(\\d+) kB`, "m").exec(status ?? "")?.[1]);
      return status === undefined ? undefined : { now: bytes("VmRSS"), peak: bytes("VmHWM") };
    },
    async stop() {
      child.kill();
      await ended;
    },
  };
}

/** The binary in the platform's package: npm runs no install script, which would put it elsewhere. */
async function find_workerd(): Promise<string> {
  const folder = join(root, "node_modules/@cloudflare");
  const packages = existsSync(folder) ? await readdir(folder) : [];
  const files = packages.flatMap((name) =>
    ["bin/workerd", "bin/workerd.exe"].map((file) => join(folder, name, file)),
  );
  const file = files.find((candidate) => existsSync(candidate));
  if (file === undefined)
    throw new Error("node_modules/@cloudflare has no workerd for this machine; npm install.");
  return file;
}
