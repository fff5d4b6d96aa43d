import { inspect } from "node:util";
import { Command, CommanderError } from "commander";
import { version } from "../../package.json";
import { env, VitMsnError } from "../index.ts";
import { add_classify } from "./classify.ts";
import { add_embed } from "./embed.ts";
import { add_few_shot } from "./few_shot.ts";
import { add_serve } from "./serve/command.ts";
import { say, visible_lines } from "./terminal.ts";
import { with_dashes } from "./training/option_file.ts";
import { add_pretrain } from "./training/pretrain.ts";
import { add_train } from "./training/train.ts";

/** Exit codes, as shells expect them. */
const FAILED = 1;
const USAGE = 2;
const SIGNAL_CODES = { SIGINT: 130, SIGTERM: 143, SIGPIPE: 141 } as const;

// libvips, which decodes images in this process alone, is told once to leave out what isn't fit for strangers' files: SVG
// drawings, PDF, ImageMagick. In a program of others that would be theirs to decide.
process.env.VIPS_BLOCK_UNTRUSTED ??= "1";

function build_program(signal: AbortSignal): Command {
  const program = new Command("vit-msn")
    .description("ViT-MSN on your own pictures: classes, embeddings, labels of your own, or training.")
    .version(version)
    .exitOverride()
    .configureOutput({ writeErr: (text) => process.stderr.write(visible_lines(text)) })
    .showHelpAfterError("(--help shows the options)")
    .addHelpText(
      "after",
      "\nResults go to standard output, everything else to standard error." +
        "\nExit codes: 0 done, 1 failed (for some picture at least), 2 wrong usage, 3 the --output is complete" +
        "\nbut for pictures that failed, 130 and 143 interrupted.",
    );
  add_classify(program, signal);
  add_embed(program, signal);
  add_few_shot(program, signal);
  add_train(program, signal);
  add_pretrain(program, signal);
  add_serve(program, signal);
  return program;
}

/** What a failed command says and exits with. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE; // commander has printed it
  if (error instanceof VitMsnError) {
    if (error.code === "ABORTED") {
      const signal = controller.signal.reason as keyof typeof SIGNAL_CODES;
      end_by(signal);
      return SIGNAL_CODES[signal];
    }
    say(`${error.message} [${error.code}]`);
    return FAILED;
  }
  // Whoever reads the results, as `head`, has had enough.
  if (is_closed_pipe(error)) return SIGNAL_CODES.SIGPIPE;
  if (is_system_error(error)) {
    say(`${error.message}. [IO]`);
    return FAILED;
  }
  process.stderr.write(`vit-msn: unexpected fault: ${visible_lines(inspect(error))}\n`);
  return FAILED;
}

/** How long an interrupted command may wait for the system. */
const LAST_RESORT_MS = 2000;

/** Something that can't be interrupted, as opening a pipe without a writer, would keep the process: then the signal ends it. */
function end_by(signal: keyof typeof SIGNAL_CODES): void {
  setTimeout(() => process.kill(process.pid, signal), LAST_RESORT_MS).unref();
}

/** What the file system refuses, which names the file. */
function is_system_error(error: unknown): error is Error {
  return error instanceof Error && "syscall" in error && "code" in error;
}

function is_closed_pipe(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "EPIPE";
}

env.warn = (message) => say(message);
const controller = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => controller.abort(name));
let output_fault: Error | undefined;
process.stdout.on("error", (error) => {
  if (!is_closed_pipe(error)) output_fault ??= error;
  controller.abort("SIGPIPE");
});
// There is nowhere to say that nothing can be said.
process.stderr.on("error", () => {});
let failed: { error: unknown } | undefined;
try {
  await build_program(controller.signal).parseAsync(with_dashes(process.argv));
} catch (error) {
  failed = { error };
}
// What was printed last may still be on its way; an interrupt doesn't wait for whoever reads.
if (!controller.signal.aborted) await new Promise((resolve) => process.stdout.write("", resolve));
if (output_fault !== undefined) {
  say(`Standard output can't be written: ${output_fault.message}. [IO]`);
  process.exitCode = FAILED;
} else if (failed !== undefined) process.exitCode = report(failed.error);
