import { type ErrorCode, VitMsnError } from "../errors.ts";
import { decode_utf8 } from "./bytes.ts";
import type { ModelSource } from "./types.ts";

export interface JsonLimits {
  /** The code of the errors that broken text gives. */
  code: ErrorCode;
  max_depth: number;
  /** Values of all kinds, keys not counted. */
  max_values: number;
  /** true: a key given twice in one object is an error (JSON.parse silently keeps the last). */
  unique_keys: boolean;
}

const CONFIG_LIMITS: JsonLimits = {
  code: "INVALID_CONFIG",
  max_depth: 64,
  max_values: 2_000_000,
  unique_keys: false,
};
const MAX_CONFIG_BYTES = 32 * 1024 * 1024;
const SCALAR = /^(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;
const MAX_SCALAR_LENGTH = 400;

/**
 * Parses JSON of unknown origin. JSON.parse alone neither bounds depth and count, nor sees a key given twice,
 * nor says where text is broken in words that are the same in every engine; one pass over the text does.
 */
export function parse_json(text: string, name: string, limits: JsonLimits): unknown {
  new JsonScanner(text, name, limits).scan();
  return JSON.parse(text);
}

class JsonScanner {
  #position = 0;
  #values = 0;
  /** Containers that are open: an object's keys so far, or undefined for an array. */
  readonly #open: (Set<string> | undefined)[] = [];
  readonly #text: string;
  readonly #name: string;
  readonly #limits: JsonLimits;

  constructor(text: string, name: string, limits: JsonLimits) {
    this.#text = text;
    this.#name = name;
    this.#limits = limits;
  }

  scan(): void {
    this.#scan_value();
    while (this.#open.length > 0) {
      if (this.#close_container()) continue;
      const keys = this.#open.at(-1);
      if (this.#peek() !== ",") this.#fail(keys ? "a comma or } is expected" : "a comma or ] is expected");
      this.#position++;
      if (keys) this.#scan_key(keys);
      this.#scan_value();
    }
    if (this.#peek() !== "") this.#fail("its end is expected");
  }

  /** A scalar, an empty container, or a container's opening down to its first scalar. */
  #scan_value(): void {
    for (;;) {
      if (++this.#values > this.#limits.max_values)
        this.#fail(`it has more than ${this.#limits.max_values} values`);
      const char = this.#peek();
      if (char !== "{" && char !== "[") break;
      this.#position++;
      if (this.#open.length >= this.#limits.max_depth)
        this.#fail(`it is nested deeper than ${this.#limits.max_depth}`);
      this.#open.push(char === "{" ? new Set() : undefined);
      if (this.#close_container()) return;
      const keys = this.#open.at(-1);
      if (keys) this.#scan_key(keys);
    }
    if (this.#peek() === '"') this.#scan_string();
    else this.#scan_scalar();
  }

  #close_container(): boolean {
    if (this.#peek() !== (this.#open.at(-1) ? "}" : "]")) return false;
    this.#position++;
    this.#open.pop();
    return true;
  }

  #scan_key(keys: Set<string>): void {
    if (this.#peek() !== '"') this.#fail("a key in double quotes is expected");
    const literal = this.#scan_string();
    if (this.#limits.unique_keys) {
      const key = JSON.parse(literal) as string;
      if (keys.has(key)) this.#fail(`the key ${literal.slice(0, 200)} is given twice`);
      keys.add(key);
    }
    if (this.#peek() !== ":") this.#fail("a colon is expected");
    this.#position++;
  }

  /** Passes a string and returns it with its quotes. */
  #scan_string(): string {
    const start = this.#position++;
    for (;;) {
      const code = this.#text.charCodeAt(this.#position++);
      if (code === 0x22) return this.#text.slice(start, this.#position);
      if (code === 0x5c) this.#scan_escape();
      else if (!(code >= 0x20)) {
        this.#position--;
        this.#fail("a string isn't closed");
      }
    }
  }

  #scan_escape(): void {
    const found = /^(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/.exec(
      this.#text.slice(this.#position, this.#position + 5),
    );
    if (!found) this.#fail("an unknown escape stands in a string");
    else this.#position += found[0].length;
  }

  #scan_scalar(): void {
    const start = this.#position;
    const limit = Math.min(this.#text.length, start + MAX_SCALAR_LENGTH);
    while (this.#position < limit && /[-+.\w]/.test(this.#text.charAt(this.#position))) this.#position++;
    if (SCALAR.test(this.#text.slice(start, this.#position))) return;
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
      `${this.#name} isn't sound JSON: ${what} at line ${line}, column ${column} (character ${this.#position}).${ends}`,
      { details: { file: this.#name, position: this.#position, line, column } },
    );
  }
}

/**
 * Reads a JSON object of a model's folder, as config.json; undefined where the source lacks the file.
 * A `__proto__` key is dropped, so that no later copy of the object can be given another prototype.
 */
export async function read_json(
  source: ModelSource,
  file: string,
): Promise<Record<string, unknown> | undefined> {
  const opened = await source.open(file);
  if (!opened) return undefined;
  try {
    if (opened.size > MAX_CONFIG_BYTES) {
      throw invalid(
        opened.name,
        `has ${opened.size} bytes, more than the ${MAX_CONFIG_BYTES} that a JSON file may have`,
      );
    }
    return parse_object(await opened.read(0, opened.size), opened.name);
  } finally {
    await opened.close();
  }
}

function parse_object(bytes: Uint8Array, name: string): Record<string, unknown> {
  const text = decode_utf8(bytes);
  if (text === undefined) throw invalid(name, "isn't UTF-8 text; save it as UTF-8");
  if (/^\s*</.test(text)) throw invalid(name, "is a web page, not JSON; download the file itself");
  if (text.startsWith("version https://git-lfs"))
    throw invalid(name, 'is a Git LFS pointer; run "git lfs pull" in the repository');
  const value = parse_json(text, name, CONFIG_LIMITS);
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
