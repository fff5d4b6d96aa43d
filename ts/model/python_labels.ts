import { env } from "../env.ts";
import { type Dialect, read_json } from "../loading/json.ts";
import type { ModelSource } from "../loading/types.ts";

/** Keys become ids as by int(), and numbers become labels as by str(). */
const LABELS: Dialect = {
  name: "id2label",
  key: (text) => `${python_int(text) ?? text}`,
  number: python_number,
};

/**
 * A config whose labels aren't all strings with the keys 0, 1, …: transformers accepts keys and values of many kinds,
 * and prints them as Python's str() does.
 */
export async function read_python_labels(files: ModelSource, file: string) {
  const { id2label, label2id, ...fields } = (await read_json(files, file, LABELS)) ?? {};
  const names = without_gaps(mapped(id2label, python_text), `${files.name}: ${file}`);
  return { ...fields, id2label: names, label2id: mapped(label2id, python_id) };
}

/**
 * Names for the ids 0, 1, …: transformers makes one class per entry, whatever its id, so ids beyond them are never
 * predicted and others have no name.
 */
function without_gaps(labels: unknown, where: string): unknown {
  if (typeof labels !== "object" || labels === null) return labels;
  const names = labels as Record<string, unknown>;
  const ids = Object.keys(names);
  const unused = ids.filter((id) => !(Number(id) >= 0 && Number(id) < ids.length));
  if (unused.length === 0 || !ids.every((id) => /^-?\d+$/.test(id))) return labels;
  const some = unused.slice(0, 5).map((id) => `${names[id]} (${id})`);
  env.warn(
    `${where}: "id2label" doesn't number its ${ids.length} classes from 0; unused: ${some.join(", ").slice(0, 200)}.`,
  );
  return Object.fromEntries(ids.map((_, i) => [i, names[i] ?? `LABEL_${i}`]));
}

function mapped(labels: unknown, change: (value: unknown) => unknown): unknown {
  if (typeof labels !== "object" || labels === null) return labels;
  return Object.fromEntries(Object.entries(labels).map(([key, value]) => [key, change(value)]));
}

/** A class's index: an integer in any notation; other keys are returned unchanged. */
function python_id(value: unknown): unknown {
  return python_int(python_text(value)) ?? value;
}

/** Python's int() of a text: spaces around, a sign, leading zeros, single underscores, any script's digits. */
function python_int(text: string): number | undefined {
  const [, sign, digits] = /^\s*([+-]?)(\p{Nd}+(?:_\p{Nd}+)*)\s*$/u.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const value = Number([...digits.replaceAll("_", "")].map(digit_value).join(""));
  return sign === "-" && value !== 0 ? -value : value;
}

/** In Unicode the ten digits of a script are consecutive, and so may be the digits of several scripts. */
function digit_value(digit: string): number {
  const code = digit.codePointAt(0) as number;
  let first = code;
  while (/\p{Nd}/u.test(String.fromCodePoint(first - 1))) first--;
  return (code - first) % 10;
}

/** Python's str() of a number, from its text in JSON: 1 is an int, 1.0 and 1e0 are floats. */
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

/** A JSON value as Python's str() and print() write it: None, True, 1.5, ['a', 'b']. */
function python_text(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : python_float(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object" || value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python_repr).join(", ")}]`;
  // transformers' notation for a float that JSON lacks.
  if ("__float__" in value) return python_float(Number(value.__float__));
  const members = Object.entries(value).map(([key, member]) => `${python_repr(key)}: ${python_repr(member)}`);
  return `{${members.join(", ")}}`;
}

function python_repr(value: unknown): string {
  if (typeof value !== "string") return python_text(value);
  const text = JSON.stringify(value).slice(1, -1).replaceAll('\\"', '"');
  return value.includes("'") && !value.includes('"') ? `"${text}"` : `'${text.replaceAll("'", "\\'")}'`;
}
