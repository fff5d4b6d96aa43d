import { type ChildProcess, spawn } from "node:child_process";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

interface Started {
  child: ChildProcess;
  finished: Promise<Finished>;
}

/** Starts the built command line's `command`; `limit` bounds the size of any file that it writes, in KiB. */
export function training_command(command: "train" | "pretrain") {
  const start = (args: string[], limit?: number): Started => {
    const words = [process.execPath, join(root, "dist/cli.js"), command, ...args];
    // A write past the limit is then an error of the system's, as on a full disk, instead of a signal.
    const shell = `trap '' XFSZ; ulimit -f ${limit}; exec "$@"`;
    const child =
      limit === undefined
        ? spawn(words[0] as string, words.slice(1), { cwd: root })
        : spawn("bash", ["-c", shell, "bash", ...words], { cwd: root });
    const output = { stdout: "", stderr: "" };
    child.stdout?.on("data", (text: Buffer) => (output.stdout += text.toString()));
    child.stderr?.on("data", (text: Buffer) => (output.stderr += text.toString()));
    const finished = new Promise<Finished>((resolve) =>
      child.on("close", (code, signal) => resolve({ code, signal, ...output })),
    );
    return { child, finished };
  };
  return { start, run: (args: string[], limit?: number) => start(args, limit).finished };
}

/** The checkpoints in an output folder. */
export async function checkpoints(output: string): Promise<string[]> {
  return (await readdir(output).catch(() => [])).filter((name) => name.startsWith("checkpoint-"));
}

/**
 * Runs a command until it comes to its end, and kills it twice on the way: each time at some moment after there is a checkpoint
 * that wasn't there before, also while the next is written. Gives how often it was killed.
 * @throws where it fails, or doesn't say that it goes on.
 */
export async function run_with_kills(start: () => Started, output: string): Promise<number> {
  let kills = 0;
  for (let attempt = 0; attempt < 20; attempt++) {
    const { child, finished } = start();
    const known = kills === 0 ? [] : await checkpoints(output);
    const timer = setInterval(async () => {
      const found = await checkpoints(output);
      if (kills < 2 && found.some((name) => !known.includes(name)))
        setTimeout(() => child.kill("SIGKILL"), 23 * kills);
    }, 5);
    const { signal, code, stderr } = await finished;
    clearInterval(timer);
    if (signal === "SIGKILL") kills++;
    else if (code === 0 && stderr.includes("training goes on from it")) return kills;
    else throw new Error(`The command ended with ${code}: ${stderr}`);
  }
  throw new Error("The command didn't come to its end.");
}
