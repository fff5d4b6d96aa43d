import { type Dialect, read_json } from "../loading/json.ts";
import type { ModelSource } from "../loading/types.ts";

/** Ids are what int() makes of keys, and labels what str() makes of numbers. */
const LABELS: Dialect = {
  name: "id2label",
  key: (text) => `${python_int(text) ?? text}`,
  number: python_number,
};

/**
 * A config whose labels aren't all strings by 0, 1, …: transformers takes keys and values of many kinds, and prints what
 * Python's str() makes of them.
 */
export async function read_python_labels(files: ModelSource, file: string) {
  const { id2label, label2id, ...fields } = (await read_json(files, file, LABELS)) ?? {};
  return { ...fields, id2label: mapped(id2label, python_text), label2id: mapped(label2id, python_id) };
}

function mapped(labels: unknown, change: (value: unknown) => unknown): unknown {
  if (typeof labels !== "object" || labels === null) return labels;
  return Object.fromEntries(Object.entries(labels).map(([key, value]) => [key, change(value)]));
}

/** A class's index: an integer in any form, else as it is. */
function python_id(value: unknown): unknown {
  return python_int(python_text(value)) ?? value;
}

/** What Python's int() makes of a text: spaces around, a sign, zeros in front, single underscores, any script's digits. */
function python_int(text: string): number | undefined {
  const [, sign, digits] = /^\s*([+-]?)(\p{Nd}+(?:_\p{Nd}+)*)\s*$/u.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const value = Number([...digits.replaceAll("_", "")].map(digit_value).join(""));
  return sign === "-" && value !== 0 ? -value : value;
}

/** Unicode has the ten digits of a script in a row, and rows of digits one after the other. */
function digit_value(digit: string): number {
  const code = digit.codePointAt(0) as number;
  let first = code;
  while (/\p{Nd}/u.test(String.fromCodePoint(first - 1))) first--;
  return (code - first) % 10;
}

/** What Python's str() makes of the number that JSON's text stands for: 1 is an int, 1.0 and 1e0 are floats. */
function python_number(text: string): string {
  return /^-?\d+$/.test(text) ? text.replace(/^-0$/, "0") : python_float(Number(text));
}

function python_float(value: number): string {
  if (!Number.isFinite(value)) return String(value).replace("NaN", "nan").replace("Infinity", "inf");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e16))
    return value.toExponential().replace(/e(.)(\d)$/, (_, sign, digit) => `e${sign}0${digit}`);
  const text = Object.is(value, -0) ? "-0" : String(value);
  return Number.isInteger(value) ? `${text}.0` : text;
}

/** What Python's str() makes of a JSON value, and print() shows: None, True, 1.5, ['a', 'b']. */
function python_text(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : python_float(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object" || value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python_repr).join(", ")}]`;
  // How transformers writes a float that JSON lacks.
  if ("__float__" in value) return python_float(Number(value.__float__));
  const members = Object.entries(value).map(([key, member]) => `${python_repr(key)}: ${python_repr(member)}`);
  return `{${members.join(", ")}}`;
}

function python_repr(value: unknown): string {
  if (typeof value !== "string") return python_text(value);
  const text = JSON.stringify(value).slice(1, -1).replaceAll('\\"', '"');
  return value.includes("'") && !value.includes('"') ? `"${text}"` : `'${text.replaceAll("'", "\\'")}'`;
}
