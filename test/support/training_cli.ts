import { readdir } from "node:fs/promises";
import { type CliOptions, root, type Started, start as start_cli } from "./cli.ts";

export { root };

interface TrainingCliOptions extends CliOptions {
  /** Bounds the size of any file that the command writes, in KiB. */
  limit?: number;
}

/** Starts the built command line's `command`. */
export function training_command(command: "train" | "pretrain") {
  const start = (args: string[], { limit, ...options }: TrainingCliOptions = {}): Started => {
    // A write past the limit is then an error of the system's, as on a full disk, instead of a signal.
    const shell = ["bash", "-c", `trap '' XFSZ; ulimit -f ${limit}; exec "$@"`, "bash"];
    return start_cli([command, ...args], { ...options, ...(limit !== undefined && { shell }) });
  };
  return { start, run: (args: string[], options?: TrainingCliOptions) => start(args, options).finished };
}

/** The checkpoints in an output folder. */
export async function checkpoints(output: string): Promise<string[]> {
  return (await readdir(output).catch(() => [])).filter((name) => name.startsWith("checkpoint-"));
}

/** Node's flags for a process that sends itself a signal as soon as it has written `text` to standard error. */
export function signal_itself(signal: NodeJS.Signals, text: string): string[] {
  const program = `
    const write = process.stderr.write;
    process.stderr.write = function (chunk, ...rest) {
      const result = write.call(this, chunk, ...rest);
      if (!String(chunk).includes(${JSON.stringify(text)})) return result;
      process.stderr.write = write;
      process.kill(process.pid, ${JSON.stringify(signal)});
      return result;
    };`;
  return ["--import", `data:text/javascript,${encodeURIComponent(program)}`];
}

/** Runs a command that logs every step; it is killed after each of the steps given, and then runs to its end. */
export async function run_with_kills(
  start: (options?: CliOptions) => Started,
  steps: readonly number[],
): Promise<void> {
  for (const step of steps) {
    const { signal, stderr } = await start({ node: signal_itself("SIGKILL", `step ${step}/`) }).finished;
    if (signal !== "SIGKILL") throw new Error(`The command ended before step ${step}: ${stderr}`);
  }
  const { code, stderr } = await start().finished;
  if (code !== 0 || !stderr.includes("contains a checkpoint"))
    throw new Error(`The command ended with ${code}: ${stderr}`);
}
