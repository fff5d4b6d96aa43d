import { inspect } from "node:util";
import { Command, CommanderError } from "commander";
import { version } from "../../package.json";
import { env, VitMsnError } from "../index.ts";
import { add_classify } from "./classify.ts";
import { add_completion } from "./completion.ts";
import { add_embed } from "./embed.ts";
import { add_few_shot } from "./few_shot.ts";
import { add_serve } from "./serve/command.ts";
import { add_similar } from "./similar.ts";
import { notify, visible_lines } from "./terminal.ts";
import { with_dashes } from "./training/option_file.ts";
import { add_pretrain } from "./training/pretrain.ts";
import { add_train } from "./training/train.ts";

/** Exit codes, as shells expect them. */
const FAILED = 1;
const USAGE = 2;
const SIGNAL_CODES = { SIGINT: 130, SIGTERM: 143, SIGPIPE: 141 } as const;

// Disables libvips' loaders that are unsafe for untrusted files: SVG, PDF, ImageMagick. The setting is for the whole process,
// so the library leaves it to the programs that use it.
process.env.VIPS_BLOCK_UNTRUSTED ??= "1";

const OTHER = "Other commands:";

function build_program(signal: AbortSignal): Command {
  const program = new Command("vit-msn")
    .description("Run and train ViT-MSN on images: classify, embed, learn your own labels, serve over HTTP.")
    .optionsGroup("General options:")
    .version(version, "-V, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .commandsGroup(OTHER)
    .helpCommand("help [command]", "print the help of a command")
    .exitOverride()
    .configureOutput({ writeErr: (text) => process.stderr.write(visible_lines(text)) })
    .showHelpAfterError("(--help lists the options)")
    .addHelpText(
      "after",
      `
Results go to standard output, everything else to standard error. Exit codes:
  0         success
  1         failure, even if only of one image
  2         wrong usage
  3         --output is complete except for images that failed
  130, 143  interrupted
"vit-msn <command> --help" lists the options of a command.`,
    );
  program.commandsGroup("Use a model:");
  add_classify(program, signal);
  add_embed(program, signal);
  add_similar(program, signal);
  add_serve(program, signal);
  program.commandsGroup("Make a model:");
  add_few_shot(program, signal);
  add_train(program, signal);
  add_pretrain(program, signal);
  program.commandsGroup(OTHER);
  add_completion(program);
  return program;
}

/** Reports why a command failed. @returns its exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE; // commander has printed it
  if (error instanceof VitMsnError) {
    if (error.code === "ABORTED") {
      const signal = controller.signal.reason as keyof typeof SIGNAL_CODES;
      end_by(signal);
      return SIGNAL_CODES[signal];
    }
    notify(`${error.message} [${error.code}]`);
    return FAILED;
  }
  // The reader of the results, such as `head`, has closed the pipe.
  if (is_closed_pipe(error)) return SIGNAL_CODES.SIGPIPE;
  if (is_system_error(error)) {
    notify(`${error.message}. [IO]`);
    return FAILED;
  }
  process.stderr.write(`vit-msn: unexpected error: ${visible_lines(inspect(error))}\n`);
  return FAILED;
}

/** How long an interrupted command may still wait for the system. */
const LAST_RESORT_MS = 2000;

/** Ends the process by the signal if something uninterruptible, such as opening a pipe without a writer, keeps it alive. */
function end_by(signal: keyof typeof SIGNAL_CODES): void {
  setTimeout(() => process.kill(process.pid, signal), LAST_RESORT_MS).unref();
}

/** Whether it is an error of the file system, whose message names the file. */
function is_system_error(error: unknown): error is Error {
  return error instanceof Error && "syscall" in error && "code" in error;
}

function is_closed_pipe(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "EPIPE";
}

env.warn = (message) => notify(message);
const controller = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => controller.abort(name));
let output_error: Error | undefined;
process.stdout.on("error", (error) => {
  if (!is_closed_pipe(error)) output_error ??= error;
  controller.abort("SIGPIPE");
});
// There is nowhere to report that standard error is closed.
process.stderr.on("error", () => {});
let failed: { error: unknown } | undefined;
try {
  await build_program(controller.signal).parseAsync(with_dashes(process.argv));
} catch (error) {
  failed = { error };
}
// Wait until the output is written, unless interrupted: the reader may be stuck.
if (!controller.signal.aborted) await new Promise((resolve) => process.stdout.write("", resolve));
if (output_error !== undefined) {
  notify(`Standard output can't be written: ${output_error.message}. [IO]`);
  process.exitCode = FAILED;
} else if (failed !== undefined) process.exitCode = report(failed.error);
