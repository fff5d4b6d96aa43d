import { type ErrorCode, VitMsnError } from "../errors.ts";
import { decode_utf8 } from "./bytes.ts";
import type { ModelSource } from "./types.ts";

export interface JsonLimits {
  /** The code of errors about the text. */
  code: ErrorCode;
  max_depth: number;
  /** Max values of all kinds, keys not counted. */
  max_values: number;
  /** true: a key given twice in one object is an error (else the last one counts). */
  unique_keys: boolean;
  /** The allowed numbers, and what their text becomes. */
  numbers: RegExp;
  number(text: string): unknown;
}

/** The numbers of Python's json module: JSON's, and those that aren't finite. */
const PYTHON_NUMBER = /^(?:NaN|-?Infinity|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;
const CONFIG_LIMITS: JsonLimits = {
  code: "INVALID_CONFIG",
  max_depth: 64,
  max_values: 2_000_000,
  unique_keys: false,
  numbers: PYTHON_NUMBER,
  number: Number,
};
const MAX_CONFIG_BYTES = 32 * 1024 * 1024;
const MAX_SCALAR_LENGTH = 400;
const CONSTANTS: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ["true", true],
  ["false", false],
  ["null", null],
]);

/** How to read the keys and numbers of one top-level object. */
export interface Dialect {
  /** The object's name. */
  name: string;
  key(text: string): string;
  number(text: string): unknown;
}

/**
 * Parses untrusted JSON. JSON.parse doesn't bound depth and count, doesn't detect duplicate keys, doesn't accept
 * Python's NaN, doesn't distinguish 1 from 1.0, and reports errors differently in every engine.
 */
export function parse_json(text: string, name: string, limits: JsonLimits, dialect?: Dialect): unknown {
  return new JsonParser(text, name, limits, dialect).parse();
}

/** A JSON file's text. Numbers that JSON lacks are written as in transformers, which every JSON parser accepts. */
export function to_json_text(value: unknown): string {
  const text = JSON.stringify(
    value,
    (_, item) => (typeof item === "number" && !Number.isFinite(item) ? { __float__: String(item) } : item),
    2,
  );
  return `${text}\n`;
}

/** An object or array that isn't closed yet, and the key that the object's next value is for. */
type Container = { items: unknown[] } | { members: Record<string, unknown>; key: string };

class JsonParser {
  #position = 0;
  #values = 0;
  readonly #open: Container[] = [];
  readonly #text: string;
  readonly #name: string;
  readonly #limits: JsonLimits;
  readonly #dialect: Dialect | undefined;

  constructor(text: string, name: string, limits: JsonLimits, dialect: Dialect | undefined) {
    this.#text = text;
    this.#name = name;
    this.#limits = limits;
    this.#dialect = dialect;
  }

  /** Nesting uses no call stack. */
  parse(): unknown {
    for (;;) {
      let value = this.#value();
      for (;;) {
        const container = this.#open.at(-1);
        if (container === undefined) {
          if (this.#peek() !== "") this.#fail("its end is expected");
          return value;
        }
        if (value !== OPENED) add(container, value);
        const end = "items" in container ? "]" : "}";
        const char = this.#peek();
        if (char !== end) {
          if (value !== OPENED && char !== ",") this.#fail(`a comma or ${end} is expected`);
          if (value !== OPENED) this.#position++;
          if ("members" in container) this.#key(container);
          break;
        }
        this.#position++;
        this.#open.pop();
        value = "items" in container ? container.items : container.members;
      }
    }
  }

  /** A scalar, or OPENED if a container begins. */
  #value(): unknown {
    if (++this.#values > this.#limits.max_values)
      this.#fail(`it has more than ${this.#limits.max_values} values`);
    const char = this.#peek();
    if (char === '"') return this.#string();
    if (char !== "{" && char !== "[") return this.#scalar();
    this.#position++;
    if (this.#open.length >= this.#limits.max_depth)
      this.#fail(`it is nested deeper than ${this.#limits.max_depth}`);
    this.#open.push(char === "{" ? { members: {}, key: "" } : { items: [] });
    return OPENED;
  }

  #key(container: { members: Record<string, unknown>; key: string }): void {
    if (this.#peek() !== '"') this.#fail("a key in double quotes is expected");
    const key = this.#string();
    container.key = this.#spoken()?.key(key) ?? key;
    if (this.#limits.unique_keys && Object.hasOwn(container.members, key))
      this.#fail(`the key ${JSON.stringify(key).slice(0, 200)} is given twice`);
    if (this.#peek() !== ":") this.#fail("a colon is expected");
    this.#position++;
  }

  /** The dialect, if the parser is directly inside its object. */
  #spoken(): Dialect | undefined {
    const [top] = this.#open;
    const inside = this.#open.length === 2 && top && "key" in top && top.key === this.#dialect?.name;
    return inside ? this.#dialect : undefined;
  }

  #string(): string {
    const start = this.#position++;
    let is_plain = true;
    for (;;) {
      const code = this.#text.charCodeAt(this.#position++);
      if (code === 0x22) {
        const literal = this.#text.slice(start, this.#position);
        return is_plain ? literal.slice(1, -1) : JSON.parse(literal);
      }
      if (code === 0x5c) {
        is_plain = false;
        this.#escape();
      } else if (!(code >= 0x20)) {
        this.#position--;
        this.#fail("a string isn't closed");
      }
    }
  }

  #escape(): void {
    const found = /^(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/.exec(
      this.#text.slice(this.#position, this.#position + 5),
    );
    if (!found) this.#fail("a string contains an unknown escape");
    else this.#position += found[0].length;
  }

  #scalar(): unknown {
    const start = this.#position;
    const limit = Math.min(this.#text.length, start + MAX_SCALAR_LENGTH);
    while (this.#position < limit && /[-+.\w]/.test(this.#text.charAt(this.#position))) this.#position++;
    const text = this.#text.slice(start, this.#position);
    if (CONSTANTS.has(text)) return CONSTANTS.get(text);
    if (this.#limits.numbers.test(text)) return (this.#spoken() ?? this.#limits).number(text);
    this.#position = start;
    this.#fail("a value is expected");
  }

  /** The next character that isn't white space, "" at the end. */
  #peek(): string {
    for (;;) {
      const char = this.#text.charAt(this.#position);
      if (char !== " " && char !== "\n" && char !== "\r" && char !== "\t") return char;
      this.#position++;
    }
  }

  #fail(what: string): never {
    let line = 1;
    let line_start = 0;
    for (
      let at = this.#text.indexOf("\n");
      at >= 0 && at < this.#position;
      at = this.#text.indexOf("\n", at + 1)
    ) {
      line++;
      line_start = at + 1;
    }
    const column = this.#position - line_start + 1;
    const ends =
      this.#position >= this.#text.length ? " The text ends there; the file was probably cut off." : "";
    throw new VitMsnError(
      this.#limits.code,
      `${this.#name} isn't valid JSON: ${what} at line ${line}, column ${column} (character ${this.#position}).${ends}`,
      { details: { file: this.#name, position: this.#position, line, column } },
    );
  }
}

/** JsonParser's value when a container was opened. */
const OPENED = Symbol("opened");

/** A plain assignment to __proto__ would set the object's prototype. */
function add(container: Container, value: unknown): void {
  if ("items" in container) container.items.push(value);
  else if (container.key !== "__proto__") container.members[container.key] = value;
  else {
    const options = { value, enumerable: true, configurable: true, writable: true };
    Object.defineProperty(container.members, container.key, options);
  }
}

/**
 * Reads a JSON object of a model's folder, such as config.json; undefined if the source lacks the file.
 * A `__proto__` key is dropped, so that no later copy of the object can get another prototype.
 */
export async function read_json(
  source: ModelSource,
  file: string,
  dialect?: Dialect,
): Promise<Record<string, unknown> | undefined> {
  const opened = await source.open(file, MAX_CONFIG_BYTES);
  if (!opened) return undefined;
  try {
    if (opened.size > MAX_CONFIG_BYTES) {
      throw invalid(
        opened.name,
        `has ${opened.size} bytes, more than the limit of ${MAX_CONFIG_BYTES} for a JSON file`,
      );
    }
    return parse_object(await opened.read(0, opened.size), opened.name, dialect);
  } finally {
    await opened.close();
  }
}

function parse_object(bytes: Uint8Array, name: string, dialect?: Dialect): Record<string, unknown> {
  const text = decode_utf8(bytes);
  if (text === undefined) throw invalid(name, "isn't UTF-8 text; save it as UTF-8");
  if (/^\s*</.test(text)) throw invalid(name, "is a web page, not JSON; download the file itself");
  if (text.startsWith("version https://git-lfs"))
    throw invalid(name, 'is a Git LFS pointer; run "git lfs pull" in the repository');
  const value = parse_json(text, name, CONFIG_LIMITS, dialect);
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw invalid(name, "must hold a JSON object");
  return drop_prototypes(value) as Record<string, unknown>;
}

function drop_prototypes(value: object): object {
  Reflect.deleteProperty(value, "__proto__");
  for (const member of Object.values(value)) {
    if (typeof member === "object" && member !== null) drop_prototypes(member);
  }
  return value;
}

function invalid(name: string, what: string): VitMsnError {
  return new VitMsnError("INVALID_CONFIG", `${name} ${what}.`, { details: { file: name } });
}
