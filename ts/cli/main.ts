import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { version } from "../../package.json";
import { env, VitMsnError } from "../index.ts";
import { classify } from "./classify.ts";
import { embed } from "./embed.ts";
import type { ModelFlags } from "./run.ts";

/** Exit codes, as shells expect them. */
const FAILED = 1;
const USAGE = 2;
const INTERRUPTED = 130;

function whole_number(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new InvalidArgumentError("expected a whole number from 1 on.");
  return value;
}

/** The arguments and options that every command has. */
function with_model_options(command: Command): Command {
  return command
    .argument("<image...>", 'picture files or http(s) URLs; "-" reads one from standard input')
    .option(
      "-m, --model <dir-or-repo>",
      "folder, hub repo id or base URL; default: the carried clothes model",
    )
    .option("--revision <name>", "branch, tag or commit of a hub repo", "main")
    .option("--cache-dir <dir>", "where downloads are kept")
    .option("--local-files-only", "never touch the network")
    .addOption(
      new Option("--dtype <name>", "how weights are kept in memory")
        .choices(["float32", "float16", "bfloat16", "int8"])
        .default("float32"),
    )
    .addOption(
      new Option("--attn <name>", "attention implementation").choices(["sdpa", "eager"]).default("sdpa"),
    )
    .option("-t, --threads <n>", "threads of the CPU engine", whole_number, 1)
    .option("-q, --quiet", "no progress bars");
}

function build_program(signal: AbortSignal): Command {
  const program = new Command("vit-msn")
    .description("ViT-MSN on your own pictures: classes, or embeddings.")
    .version(version)
    .exitOverride()
    .showHelpAfterError("(--help shows the options)")
    .addHelpText(
      "after",
      "\nResults go to standard output, everything else to standard error." +
        "\nExit codes: 0 done, 1 failed (for some picture at least), 2 wrong usage, 130 interrupted.",
    );
  with_model_options(program.command("classify"))
    .description("the likeliest classes of each picture")
    .option("-k, --top-k <n>", "classes to show", whole_number, 5)
    .addOption(
      new Option(
        "--function-to-apply <name>",
        "how logits become scores; default: by the model's problem type",
      ).choices(["softmax", "sigmoid", "none"]),
    )
    .option("--json", "one JSON object a line instead of a table")
    .action(async (images: string[], flags: ModelFlags) => {
      process.exitCode = await classify(images, flags, signal);
    });
  with_model_options(program.command("embed"))
    .description("one embedding a picture, as JSON lines")
    .addOption(
      new Option("--pool <name>", "CLS token, or mean of the patch tokens")
        .choices(["cls", "mean"])
        .default("cls"),
    )
    .action(async (images: string[], flags: ModelFlags) => {
      process.exitCode = await embed(images, flags, signal);
    });
  return program;
}

/** What a failed command says and exits with. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE; // commander has printed it
  if (error instanceof VitMsnError) {
    if (error.code === "ABORTED") return INTERRUPTED;
    console.error(`vit-msn: ${error.message} [${error.code}]`);
    return FAILED;
  }
  console.error("vit-msn: unexpected fault:", error);
  return FAILED;
}

env.warn = (message) => console.error(`vit-msn: ${message}`);
const controller = new AbortController();
process.once("SIGINT", () => controller.abort());
try {
  await build_program(controller.signal).parseAsync();
} catch (error) {
  process.exitCode = report(error);
}
