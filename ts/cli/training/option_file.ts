import { readFile } from "node:fs/promises";
import { type Command, InvalidArgumentError, Option } from "commander";
import { env, VitMsnError } from "../../index.ts";
import { type OptionRule, unmet_rule } from "../../training/index.ts";
import { HEADINGS, type OptionHelp } from "./option_help.ts";
import type { DescribedOption } from "./shared_options.ts";
import { type Translated, translate_arguments } from "./transformers_options.ts";

/** Options by their names with underscores. */
export type DescribedOptions = ReadonlyMap<string, DescribedOption>;

/** A library's options with help for each. */
export function described<Name extends string>(
  rules: Readonly<Record<Name, OptionRule>>,
  help: Readonly<Record<Name, OptionHelp>>,
): [string, DescribedOption][] {
  const names = Object.keys(help) as Name[];
  return names.map((name) => [name, { rule: rules[name], ...help[name] }]);
}

/** Translates another program's option into one of this command. */
type Translate = (name: string, value: unknown) => Translated | undefined;

/** A command whose options may be given in a file. */
export interface TrainingCommand {
  name: string;
  description: string;
  /** Shown below the options. */
  help: string;
  options: DescribedOptions;
  translate?: Translate;
  /** @returns the exit code. */
  run(options: Record<string, unknown>): Promise<number>;
}

/** Adds a command with a file of options as its argument, and the options under their headings. */
export function add_training_command(program: Command, training: TrainingCommand): void {
  const { name, description, help, options, translate, run } = training;
  const command = program
    .command(name)
    .description(description)
    .argument("[options.json]", "JSON file of options by name; the command line overrides it")
    .addHelpText("after", help);
  for (const heading of HEADINGS)
    for (const [name, option] of options)
      if (option.heading === heading) command.addOption(make_option(name, option).helpGroup(heading));
  command.action(async (file: string | undefined) => {
    const from_file = file === undefined ? {} : await read_options(file, options, translate);
    process.exitCode = await run({ ...from_file, ...given_options(command, options) });
  });
}

/** The arguments with --top_k as --top-k; for `train`, with transformers' options translated. */
export function with_dashes(argv: readonly string[]): string[] {
  const words = argv[2] === "train" ? translate_arguments(argv) : argv;
  const end = words.indexOf("--");
  const options = end < 0 ? words.length : end;
  return words.map((word, i) =>
    i < options ? word.replace(/^--[a-z0-9_]+/, (name) => name.replaceAll("_", "-")) : word,
  );
}

function make_option(name: string, { rule, text, value = VALUES[rule.kind] }: DescribedOption): Option {
  const argument = rule.kind === "flag" ? `[${value}]` : `<${value}>`;
  const option = new Option(`--${name.replaceAll("_", "-")} ${argument}`, text);
  switch (rule.kind) {
    case "flag":
      return option.argParser(parse_flag);
    case "choice":
      return option.choices(rule.choices);
    case "integer":
    case "number":
      return option.argParser((given) => parse_number(rule, given));
    case "range":
    case "numbers":
      return option.argParser((given) => parse_numbers(rule, given));
    default:
      return option;
  }
}

/** The names of options' values in --help. */
const VALUES: Readonly<Record<OptionRule["kind"], string>> = {
  flag: "bool",
  choice: "name",
  integer: "n",
  number: "x",
  range: "from,to",
  numbers: "x,x...",
  texts: "text...",
  text: "text",
  folder: "dir",
};

function parse_flag(value: string): boolean {
  if (/^(true|yes|y|t|1)$/i.test(value)) return true;
  if (/^(false|no|n|f|0)$/i.test(value)) return false;
  throw new InvalidArgumentError("expected true or false.");
}

function parse_number(rule: OptionRule, value: string): number {
  const number = value.trim() === "" ? Number.NaN : Number(value);
  const expected = unmet_rule(rule, number);
  if (expected !== undefined) throw new InvalidArgumentError(`expected ${expected}.`);
  return number;
}

function parse_numbers(rule: OptionRule, value: string): number[] {
  const numbers = value.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  const expected = unmet_rule(rule, numbers);
  if (expected !== undefined) throw new InvalidArgumentError(`expected ${expected}, such as 0.3,1.`);
  return numbers;
}

/** The options given on the command line, by names with underscores. */
function given_options(command: Command, options: DescribedOptions): Record<string, unknown> {
  return Object.fromEntries(
    [...options.keys()].flatMap((name) => {
      const value: unknown = command.getOptionValue(camel_case(name));
      return value === undefined ? [] : [[name, value]];
    }),
  );
}

function camel_case(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** The options of a JSON file. @throws VitMsnError NOT_FOUND, or INVALID_ARGUMENT that names the option. */
async function read_options(
  path: string,
  known: DescribedOptions,
  translate: Translate = () => undefined,
): Promise<Record<string, unknown>> {
  const content = await readFile(path, "utf8").catch((cause: unknown) => {
    throw new VitMsnError("NOT_FOUND", `The options file ${path} can't be read; check the path.`, { cause });
  });
  const options: Record<string, unknown> = {};
  const ignored: string[] = [];
  for (const [key, given] of Object.entries(parse_object(content, path))) {
    const result = translate(key, given) ?? { name: key, value: given };
    if ("note" in result) {
      ignored.push(key);
      continue;
    }
    const { name, value } = result;
    const described = known.get(name);
    if (described === undefined)
      throw invalid(`${path}: unknown option ${JSON.stringify(name)}; --help lists the options.`, name);
    if (value === null) continue; // the default, like transformers' None
    const expected = unmet_rule(described.rule, value);
    if (expected !== undefined) {
      throw invalid(`${path}: ${name} must be ${expected}, got ${JSON.stringify(value)}.`, name);
    }
    options[name] = value;
  }
  if (ignored.length > 0)
    env.warn(`${path}: ignored these options, which have no effect here: ${ignored.join(", ")}.`);
  return options;
}

function parse_object(content: string, path: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    throw new VitMsnError("INVALID_ARGUMENT", `${path} isn't valid JSON: ${String(cause)}`, { cause });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  throw invalid(`${path} must contain a JSON object of options.`, path);
}

function invalid(message: string, argument: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: { argument } });
}

/** The options with these names. */
export function pick(
  options: Readonly<Record<string, unknown>>,
  names: readonly string[],
): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options).filter(([name]) => names.includes(name)));
}
