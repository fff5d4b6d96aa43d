import { readFile } from "node:fs/promises";
import { type Command, InvalidArgumentError, Option } from "commander";
import { env, VitMsnError } from "../../index.ts";
import { type OptionRule, unmet_rule } from "../../training/index.ts";
import { type Translated, translate_arguments } from "./transformers_options.ts";

/** An option of a training command: what its value must be, and a line on it. */
export interface Described {
  rule: OptionRule;
  what: string;
}

/** Options by their names with underscores. */
export type DescribedOptions = ReadonlyMap<string, Described>;

/** Rules that the options of several commands have. */
export const text: OptionRule = { kind: "text" };
export const flag: OptionRule = { kind: "flag" };
export const count = (min: number): OptionRule => ({ kind: "integer", min, max: Number.MAX_SAFE_INTEGER });
export const choice = (...choices: string[]): OptionRule => ({ kind: "choice", choices });

/** A library's options with a line on each. */
export function described<Name extends string>(
  rules: Readonly<Record<Name, OptionRule>>,
  lines: Readonly<Record<Name, string>>,
): [string, Described][] {
  const names = Object.keys(lines) as Name[];
  return names.map((name) => [name, { rule: rules[name], what: lines[name] }]);
}

/** Adds a file of options as the argument, and an option for each. */
export function add_options(command: Command, options: DescribedOptions): void {
  command.argument("[options.json]", "a file of options by name; those on the command line win");
  for (const [name, one] of options) command.addOption(make_option(name, one));
}

/** What another program's option is here. */
type Translate = (name: string, value: unknown) => Translated | undefined;

/** The options of the file, if there is one, and of the command line, by name. */
export async function all_options(
  command: Command,
  file: string | undefined,
  options: DescribedOptions,
  translate: Translate = () => undefined,
): Promise<Record<string, unknown>> {
  const from_file = file === undefined ? {} : await read_options(file, options, translate);
  return { ...from_file, ...given_options(command, options) };
}

/** The commands whose options may be written with underscores. */
const TRAINING_COMMANDS = ["train", "pretrain"];

/** The arguments with --train_dir as --train-dir, for the commands that train; for `train`, transformers' options in its own. */
export function with_dashes(argv: readonly string[]): string[] {
  const [, , command = ""] = argv;
  if (!TRAINING_COMMANDS.includes(command)) return [...argv];
  const words = command === "train" ? translate_arguments(argv) : argv;
  return words.map((word) => word.replace(/^--[a-z0-9_]+/, (name) => name.replaceAll("_", "-")));
}

function make_option(name: string, { rule, what }: Described): Option {
  const long = `--${name.replaceAll("_", "-")}`;
  switch (rule.kind) {
    case "flag":
      return new Option(`${long} [bool]`, what).argParser(parse_flag);
    case "choice":
      return new Option(`${long} <name>`, what).choices(rule.choices);
    case "integer":
    case "number":
      return new Option(`${long} <n>`, what).argParser((value) => parse_number(rule, value));
    case "range":
      return new Option(`${long} <from,to>`, what).argParser((value) => parse_range(rule, value));
    case "texts":
      return new Option(`${long} <text...>`, what);
    case "text":
    case "folder":
      return new Option(`${long} <text>`, what);
  }
}

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

function parse_range(rule: OptionRule, value: string): number[] {
  const range = value.split(",").map((part) => (part.trim() === "" ? Number.NaN : Number(part)));
  const expected = unmet_rule(rule, range);
  if (expected !== undefined) throw new InvalidArgumentError(`expected ${expected}, as 0.3,1.`);
  return range;
}

/** What the command line gave, by names with underscores. */
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
  translate: Translate,
): Promise<Record<string, unknown>> {
  const content = await readFile(path, "utf8").catch((cause: unknown) => {
    throw new VitMsnError("NOT_FOUND", `The file of options ${path} can't be read.`, { cause });
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
    if (described === undefined) throw invalid(`${path}: there is no option ${JSON.stringify(name)}.`, name);
    if (value === null) continue; // as transformers' None: its default
    const expected = unmet_rule(described.rule, value);
    if (expected !== undefined) {
      throw invalid(`${path}: ${name} must be ${expected}, got ${JSON.stringify(value)}.`, name);
    }
    options[name] = value;
  }
  if (ignored.length > 0) env.warn(`${path}: ignored, as they change nothing here: ${ignored.join(", ")}.`);
  return options;
}

function parse_object(content: string, path: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    throw new VitMsnError("INVALID_ARGUMENT", `${path} isn't sound JSON: ${String(cause)}`, { cause });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  throw invalid(`${path} must hold an object of options.`, path);
}

function invalid(message: string, argument: string): VitMsnError {
  return new VitMsnError("INVALID_ARGUMENT", message, { details: { argument } });
}

/** Those of some names. */
export function pick(
  options: Readonly<Record<string, unknown>>,
  names: readonly string[],
): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options).filter(([name]) => names.includes(name)));
}
