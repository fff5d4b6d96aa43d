import { as_utf8 } from "../../files/text_encoding.ts";
import { bad_row, MAX_CELL } from "./table_errors.ts";

/** A line of a CSV file; it may stretch over several lines of text. */
export interface Record {
  cells: string[];
  /** The line that it begins on, counted from 1. */
  line: number;
}

/**
 * The records of a CSV file (RFC 4180), in UTF-8 or UTF-16, with or without a byte order mark, with the line endings of any
 * system. Blank lines are skipped. The separator is a comma, or what the first line has instead: a tab or a semicolon.
 * @throws VitMsnError INVALID_ARGUMENT that names the line.
 */
export async function* read_csv(chunks: AsyncIterable<Uint8Array>, file: string): AsyncGenerator<Record> {
  const parser = new CsvParser(file);
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const decode = (bytes?: Uint8Array) => {
    try {
      return decoder.decode(bytes, { stream: bytes !== undefined });
    } catch {
      throw bad_row(file, `line ${parser.line} or below`, "isn't UTF-8; save the file as UTF-8");
    }
  };
  for await (const bytes of as_utf8(chunks)) yield* parser.add(decode(bytes));
  yield* parser.add(decode());
  yield* parser.end();
}

/** Where the parser is: before a cell, in one without quotes, in one with quotes, or after its closing quote. */
type State = "start" | "plain" | "quoted" | "closed";

class CsvParser {
  readonly #file: string;
  /** undefined until the first line has been seen. */
  #separator: string | undefined;
  #waiting = "";
  #state: State = "start";
  #cells: string[] = [];
  #cell: string[] = [];
  #length = 0;
  #first_line = 1;
  #after_return = false;
  line = 1;

  constructor(file: string) {
    this.#file = file;
  }

  *add(text: string): Generator<Record> {
    if (this.#separator === undefined) {
      this.#waiting += text;
      if (!/[\r\n]/.test(this.#waiting) && this.#waiting.length < MAX_CELL) return;
      yield* this.#begin();
    } else yield* this.#parse(text);
  }

  *end(): Generator<Record> {
    if (this.#separator === undefined) yield* this.#begin();
    if (this.#state === "quoted")
      throw this.#bad(`has a quote that isn't closed; close it, or double the quotes inside of a cell`);
    if (this.#state !== "start" || this.#cells.length > 0) yield* this.#end_record();
  }

  *#begin(): Generator<Record> {
    const header = /^[^\r\n]*/.exec(this.#waiting)?.[0] ?? "";
    this.#separator = [",", "\t", ";"].find((separator) => header.includes(separator)) ?? ",";
    const text = this.#waiting;
    this.#waiting = "";
    yield* this.#parse(text);
  }

  *#parse(text: string): Generator<Record> {
    for (let at = 0; at < text.length; ) {
      const end = this.#end_of_run(text, at);
      if (end > at) {
        this.#push(text.slice(at, end));
        at = end;
        continue;
      }
      yield* this.#take(text[at] as string);
      at++;
    }
  }

  /** Where characters that stand for themselves end. */
  #end_of_run(text: string, from: number): number {
    if (this.#state === "quoted") {
      let at = from;
      while (at < text.length && text[at] !== '"') {
        if (text[at] === "\n" || (text[at] === "\r" && text[at + 1] !== "\n")) this.line++;
        at++;
      }
      return at;
    }
    if (this.#state === "closed") return from;
    let at = from;
    while (at < text.length && !this.#is_special(text[at] as string)) at++;
    return at;
  }

  #is_special(character: string): boolean {
    return character === this.#separator || character === '"' || character === "\n" || character === "\r";
  }

  #push(piece: string): void {
    this.#length += piece.length;
    if (this.#length > MAX_CELL)
      throw this.#bad(`has a cell of more than ${MAX_CELL} characters; is a quote not closed?`);
    this.#after_return = false;
    if (this.#state === "start") this.#state = "plain";
    this.#cell.push(piece);
  }

  *#take(character: string): Generator<Record> {
    const is_second_half = character === "\n" && this.#after_return;
    this.#after_return = character === "\r";
    if (is_second_half) return;
    if (character === '"') this.#take_quote();
    else if (character === this.#separator) this.#end_cell();
    else if (character === "\n" || character === "\r") {
      const is_blank = this.#state === "start" && this.#cells.length === 0;
      if (!is_blank) yield* this.#end_record();
      this.line++;
      this.#first_line = this.line;
    } else throw this.#bad("has text after a closing quote; double the quotes inside of a cell");
  }

  #take_quote(): void {
    if (this.#state === "start") this.#state = "quoted";
    else if (this.#state === "quoted") this.#state = "closed";
    else {
      // A doubled quote within quotes; a quote within a cell that doesn't begin with one stands for itself.
      if (this.#state === "closed") this.#state = "quoted";
      this.#push('"');
    }
  }

  #end_cell(): void {
    this.#cells.push(this.#cell.join(""));
    this.#cell = [];
    this.#length = 0;
    this.#state = "start";
  }

  *#end_record(): Generator<Record> {
    this.#end_cell();
    yield { cells: this.#cells, line: this.#first_line };
    this.#cells = [];
  }

  #bad(message: string): Error {
    return bad_row(this.#file, `line ${this.#first_line}`, message);
  }
}
