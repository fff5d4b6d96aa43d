import { by_code_points } from "../../files/file_names.ts";
import type { ProblemType } from "../../model/configuration_vit_msn.ts";
import type { ExampleLabel } from "../data/dataset.ts";
import { bad_row } from "./table_errors.ts";

/** A label as a list has it, with its place for messages. */
export interface LabelCell {
  value: unknown;
  file: string;
  /** Such as "line 3". */
  place: string;
  column: string;
}

export interface LabelFacts {
  problem_type?: ProblemType | undefined;
  /** The classes by index; others are then an error. */
  classes?: readonly string[] | undefined;
  /** The names of classes that integers stand for. */
  class_names?: readonly string[] | undefined;
  /** Whether numbers are text. */
  is_text: boolean;
  /** Whether the column is of floating-point numbers. */
  is_float: boolean;
}

export interface Labels {
  problem_type: ProblemType;
  /** undefined for regression. */
  classes: readonly string[] | undefined;
  /** Class names; for several classes 0 or 1 for each; for regression a number, or several. */
  labels: readonly ExampleLabel[];
}

const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i;
const INTEGER = /^[+-]?\d+$/;

/**
 * What a column of labels means. Without `problem_type`: lists are several classes for each image, or numbers if one has a
 * fraction; single numbers with a fraction are regression; anything else is one class, by its name or number.
 * @throws VitMsnError INVALID_ARGUMENT that names the row.
 */
export function interpret_labels(cells: readonly LabelCell[], facts: LabelFacts): Labels {
  const problem_type = facts.problem_type ?? infer(cells, facts);
  switch (problem_type) {
    case "regression":
      return { problem_type, classes: undefined, labels: regression(cells, facts) };
    case "multi_label_classification":
      return { problem_type, ...multi_label(cells, facts) };
    case "single_label_classification":
      return { problem_type, ...single_label(cells, facts) };
  }
}

function infer(cells: readonly LabelCell[], facts: LabelFacts): ProblemType {
  const { class_names, is_float } = facts;
  const values = cells.map(({ value }) => value).filter((value) => !is_empty(value));
  const has_lists = values.some(Array.isArray);
  const numbers = values.flat().filter((value) => !is_empty(value));
  const are_numbers =
    numbers.length > 0 && numbers.every((value) => number_in(value, facts.is_text) !== undefined);
  const have_fractions = is_float || numbers.some((value) => has_fraction(value, facts.is_text));
  if (class_names === undefined && are_numbers && have_fractions) return "regression";
  return has_lists ? "multi_label_classification" : "single_label_classification";
}

function is_empty(value: unknown): boolean {
  return value === null || value === undefined || (typeof value === "string" && value.trim() === "");
}

/** The number that a value is, or that its text stands for. */
function number_in(value: unknown, is_text: boolean): number | undefined {
  if (typeof value === "number") return value;
  if (typeof value === "bigint") return Number(value);
  if (is_text && typeof value === "string" && NUMBER.test(value.trim())) return Number(value);
  return undefined;
}

function has_fraction(value: unknown, is_text: boolean): boolean {
  if (typeof value === "string") return is_text && !INTEGER.test(value.trim());
  return typeof value === "number" && !Number.isInteger(value);
}

// Regression.

function regression(cells: readonly LabelCell[], { is_text }: LabelFacts): (number | number[])[] {
  let width: number | undefined;
  return cells.map((cell) => {
    const values = Array.isArray(cell.value) ? cell.value : [cell.value];
    const numbers = values.map((value) => {
      const number = number_in(value, is_text);
      if (number !== undefined && Number.isFinite(number)) return number;
      throw bad(
        cell,
        `${described(value)} isn't a number, which regression needs; correct or remove the row`,
      );
    });
    width ??= numbers.length;
    if (numbers.length !== width || width === 0)
      throw bad(
        cell,
        `has ${numbers.length} numbers, other rows have ${width}; give each row the same number`,
      );
    return Array.isArray(cell.value) ? numbers : (numbers[0] as number);
  });
}

// One class for each image.

function single_label(cells: readonly LabelCell[], facts: LabelFacts): Omit<Labels, "problem_type"> {
  const labels = cells.map((cell) => {
    if (Array.isArray(cell.value))
      throw bad(
        cell,
        'has several labels; for several classes, set problem_type to "multi_label_classification"',
      );
    return class_name(cell, cell.value, facts);
  });
  const classes = facts.classes ?? facts.class_names ?? sorted(labels);
  check_known(
    cells,
    labels.map((label) => [label]),
    classes,
  );
  return { classes, labels };
}

/** The class that a value names, in Unicode form NFC. */
function class_name(cell: LabelCell, value: unknown, facts: LabelFacts): string {
  if (is_empty(value)) throw bad(cell, "is empty; every image needs a label: add it, or remove the row");
  const number = number_in(value, facts.is_text);
  const names = facts.class_names ?? names_by_index(facts.classes);
  if (number !== undefined && names !== undefined) {
    const name = names[number];
    if (name !== undefined) return name;
    throw bad(
      cell,
      `${number} isn't the index of one of the ${names.length} classes; correct or remove the row`,
    );
  }
  if (typeof value === "string") return value.trim().normalize("NFC");
  if (number !== undefined && !Number.isInteger(number))
    throw bad(cell, `${number} isn't a class; for numbers, set problem_type to "regression"`);
  if (number !== undefined || typeof value === "boolean") return String(value);
  if (value instanceof Uint8Array) return new TextDecoder().decode(value).normalize("NFC");
  throw bad(cell, `${described(value)} isn't a class; expected a name or an integer`);
}

/** Integers are indices of given classes, unless the classes have integers as names. */
function names_by_index(classes: readonly string[] | undefined): readonly string[] | undefined {
  return classes?.some((name) => INTEGER.test(name)) ? undefined : classes;
}

/** Distinct names in order: integers by their value. */
function sorted(names: readonly string[]): string[] {
  const distinct = [...new Set(names)];
  return distinct.every((name) => INTEGER.test(name))
    ? distinct.sort((a, b) => Number(a) - Number(b))
    : distinct.sort(by_code_points);
}

/** @throws VitMsnError INVALID_ARGUMENT for labels that aren't among the classes. */
function check_known(
  cells: readonly LabelCell[],
  labels: readonly (readonly string[])[],
  classes: readonly string[],
): void {
  const known = new Set(classes);
  const unknown = new Map<string, LabelCell>();
  labels.forEach((row, i) => {
    for (const name of row)
      if (!known.has(name) && !unknown.has(name)) unknown.set(name, cells[i] as LabelCell);
  });
  const [first] = unknown.values();
  if (first === undefined) return;
  const names = [...unknown.keys()].slice(0, 10).map((name) => JSON.stringify(name));
  throw bad(
    first,
    `has labels that aren't among the classes (${classes.slice(0, 20).join(", ")}): ${names.join(", ")}` +
      `${unknown.size > names.length ? ` and ${unknown.size - names.length} more` : ""}; ` +
      "correct them, or add images of these classes to the training data",
  );
}

// Several classes for each image.

function multi_label(cells: readonly LabelCell[], facts: LabelFacts): Omit<Labels, "problem_type"> {
  const width = facts.class_names === undefined ? width_of_flags(cells) : undefined;
  if (width !== undefined) return flags(cells, width, facts);
  const rows = cells.map((cell) => {
    const values = Array.isArray(cell.value) ? cell.value : is_empty(cell.value) ? [] : [cell.value];
    return values.map((value) => class_name(cell, value, facts));
  });
  const classes = facts.classes ?? facts.class_names ?? sorted(rows.flat());
  check_known(cells, rows, classes);
  const index = new Map(classes.map((name, i) => [name, i]));
  const shared = shared_rows();
  const labels = rows.map((row) => {
    const label = new Array<number>(classes.length).fill(0);
    for (const name of row) label[index.get(name) as number] = 1;
    return shared(label);
  });
  return { classes, labels };
}

/**
 * The length that all rows share if they have a 0 or a 1 for each class, rather than the classes themselves: as classes, two
 * rows of the same length would be the same.
 */
function width_of_flags(cells: readonly LabelCell[]): number | undefined {
  const [first] = cells;
  const width = Array.isArray(first?.value) ? first.value.length : 0;
  const are_flags = cells.every(
    ({ value }) =>
      Array.isArray(value) &&
      value.length === width &&
      value.every((one) => [0, 1].includes(number_in(one, false) as number)),
  );
  return width >= 2 && are_flags ? width : undefined;
}

function flags(cells: readonly LabelCell[], width: number, facts: LabelFacts): Omit<Labels, "problem_type"> {
  const classes = facts.classes ?? Array.from({ length: width }, (_, i) => String(i));
  if (classes.length !== width)
    throw bad(cells[0] as LabelCell, `has ${width} numbers, but there are ${classes.length} classes`);
  const rows = shared_rows();
  return { classes, labels: cells.map(({ value }) => rows((value as unknown[]).map(Number))) };
}

/** Images with the same classes share their label, which is long. */
function shared_rows(): (row: readonly number[]) => readonly number[] {
  const known = new Map<string, readonly number[]>();
  return (row) => {
    const key = row.join("");
    const found = known.get(key) ?? row;
    known.set(key, found);
    return found;
  };
}

function described(value: unknown): string {
  if (is_empty(value)) return "an empty cell";
  const text = typeof value === "bigint" ? String(value) : (JSON.stringify(value) ?? typeof value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

function bad({ file, place, column }: LabelCell, message: string): Error {
  return bad_row(file, place, message, column);
}
