import { invalid_argument, show } from "./errors.ts";
import { type_name } from "./is_a.ts";

/** Valid values: a description with a test, or a list. Rules are plain data, so that bundlers drop unused tables. */
export type Rule = readonly [expected: string, is_met: Test] | readonly (string | boolean)[];
type Test = (value: unknown) => boolean;
export type Rules = Readonly<Record<string, Rule>>;

const is_count = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0;
const is_callable = (value: unknown) => typeof value === "function";

/** For options that are checked where they are used. */
export const any: Rule = ["", () => true];
export const flag: Rule = ["true or false", (value) => typeof value === "boolean"];
export const text: Rule = ["a string", (value) => typeof value === "string"];
export const count: Rule = ["a positive integer", is_count];
export const count_or_null: Rule = [
  "a positive integer or null",
  (value) => value === null || is_count(value),
];
export const callable: Rule = ["a function", is_callable];
export const record: Rule = ["an object", is_record];
export const abort_signal: Rule = [
  "an AbortSignal",
  (value) => is_record(value) && "aborted" in value && is_callable(value.addEventListener),
];
/** The engine's WebAssembly, or its address. */
export const wasm_input: Rule = [
  "a WebAssembly.Module, its bytes, a URL or a Response",
  (value) => /(Module|URL|Response|Buffer|\dArray|View)$/.test(type_name(value)),
];

/** Names in transformers and transformers.js, with their counterparts here. */
const ELSEWHERE: readonly (readonly [RegExp, string])[] = [
  [/^quantized$/, 'dtype: "int8"'],
  [/^top_?k$/i, "top_k in the pipeline's call"],
  [/local.?model/i, "a folder's path as the model"],
  [/^use.*cache$/i, "env.use_cache"],
  [/^(backends|session_options)$/, "num_threads, device and worker of from_pretrained"],
];

/**
 * Checks an object of options; undefined options count as omitted.
 * @param where the function or class that takes the options, for messages.
 * @throws VitMsnError INVALID_ARGUMENT for an unknown option, naming the most similar known one, or a value of a wrong
 *   type.
 */
export function check_options(where: string, options: unknown, ...tables: readonly Rules[]): void {
  const rules = Object.assign({}, ...tables);
  if (!is_record(options))
    throw invalid_argument(`${where} takes an object of options, got ${show(options)}.`);
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined) check_option(where, name, value, rules);
  }
}

/** Like check_options, for one option. */
export function check_option(where: string, name: string, value: unknown, rules: Rules): void {
  if (!Object.hasOwn(rules, name)) throw unknown_option(where, name, Object.keys(rules));
  const rule = rules[name] as Rule;
  const [expected, is_met] = rule;
  const is_test = typeof is_met === "function";
  if (is_test ? is_met(value) : rule.includes(value as string)) return;
  // A wrong token may still be a secret.
  const got = name === "token" ? typeof value : show(value);
  const wanted = is_test ? expected : `one of ${rule.map(show).join(", ")}`;
  throw invalid_argument(`${where}: ${name} must be ${wanted}, got ${got}.`, name);
}

/** The error for an option that doesn't exist; it names what to use instead. */
export function unknown_option(where: string, name: string, known: readonly string[]): Error {
  const instead = nearest(name, known, 1) ?? elsewhere(name) ?? nearest(name, known, 0.5);
  const advice = instead ? `use ${instead}` : `it has ${known.join(", ")}`;
  return invalid_argument(`${where} has no option ${show(name)}; ${advice}.`, name);
}

/** The counterpart here of another package's option. */
export function elsewhere(name: string): string | undefined {
  return ELSEWHERE.find(([names]) => names.test(name))?.[1];
}

/** The known name that is most similar, by Dice's coefficient of pairs of letters. */
function nearest(name: string, known: readonly string[], least: number): string | undefined {
  const wanted = pairs(name);
  let found: string | undefined;
  for (const one of known) {
    const own = pairs(one);
    const likeness = (2 * own.filter((pair) => wanted.includes(pair)).length) / (own.length + wanted.length);
    if (likeness >= least) [least, found] = [likeness, one];
  }
  return found;
}

/** Makes camelCase and snake_case equal. */
function pairs(name: string): string[] {
  const plain = name.slice(0, 60).toLowerCase().replaceAll("_", "");
  return Array.from(plain, (_, i) => plain.slice(i, i + 2));
}

export function is_record(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The bytes of a buffer or a view.
 * @throws VitMsnError INVALID_ARGUMENT if the bytes were transferred or shrunk meanwhile: copying would throw half-way.
 */
export function bytes_of(data: ArrayBufferLike | ArrayBufferView, what: string): Uint8Array {
  try {
    if (!ArrayBuffer.isView(data)) return new Uint8Array(data);
    (data as Partial<Uint8Array>).at?.(0);
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  } catch (cause) {
    throw invalid_argument(`${what}'s memory was transferred or resized (${cause}); pass a copy.`);
  }
}
