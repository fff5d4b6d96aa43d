import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface CliOptions {
  stdin?: Uint8Array | string;
  env?: NodeJS.ProcessEnv;
  /** Node's own flags. */
  node?: string[];
  /** A program, with its arguments, that is given the command line as further arguments. */
  shell?: string[];
}

export type Started = ChildProcess & { finished: Promise<Finished> };

/** Starts the built command line in the repository's root. */
export function start(args: string[], options: CliOptions = {}): Started {
  const { shell = [], node = [] } = options;
  const words = [...shell, process.execPath, ...node, join(root, "dist/cli.js"), ...args];
  const child = spawn(words[0] as string, words.slice(1), {
    cwd: root,
    env: { ...process.env, ...options.env },
  });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (text: Buffer) => (output.stdout += text.toString()));
  child.stderr.on("data", (text: Buffer) => (output.stderr += text.toString()));
  // A process that was killed doesn't read the rest.
  child.stdin.on("error", () => {});
  child.stdin.end(options.stdin);
  const finished = new Promise<Finished>((resolve) =>
    child.on("close", (code, signal) => resolve({ code, signal, ...output })),
  );
  return Object.assign(child, { finished });
}

export function vit_msn(args: string[], options: CliOptions = {}): Promise<Finished> {
  return start(args, options).finished;
}
