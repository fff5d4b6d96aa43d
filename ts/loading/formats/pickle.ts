import { VitMsnError } from "../../errors.ts";
import { decode_utf8, view_of } from "../bytes.ts";

/** The name of a class or function in a pickle. Nothing is ever imported or called. */
export class PickleGlobal {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

/** A Python tuple. */
export class PickleTuple {
  readonly items: readonly unknown[];
  constructor(items: readonly unknown[]) {
    this.items = items;
  }
}

/** A Python dict or OrderedDict. */
export class PickleDict extends Map<unknown, unknown> {}

/** What a pickle may name, call and refer to; everything else is refused. */
export interface PickleRules {
  /** The names that GLOBAL may request, such as "torch._utils._rebuild_tensor_v2". */
  globals: ReadonlySet<string>;
  /** Resolves a persistent id. */
  persistent_load(id: unknown): unknown;
  /** Computes the result of calling an allowed global. */
  reduce(callee: PickleGlobal, args: readonly unknown[]): unknown;
}

const MAX_OPS = 2_000_000;
const MAX_STACK = 1_000_000;
const MAX_NAME_BYTES = 256;
const MARK = Symbol("mark");

/**
 * Runs a pickle's instructions on plain data. Only the instructions that torch.save writes for a state dict are known
 * (protocols 2 to 5). Every count and length is bounded, and nothing that the pickle names is executed.
 * Instructions: CPython's Lib/pickletools.py.
 */
export function unpickle(bytes: Uint8Array, file: string, rules: PickleRules): unknown {
  return new Unpickler(bytes, file, rules).run();
}

/** The error for anything but tensors. */
export function refuse_pickle(file: string, asked: string): VitMsnError {
  return new VitMsnError(
    "INVALID_CHECKPOINT",
    `${file} asks for ${asked}, which no file of weights needs, so it was refused. Loading executes nothing from it. ` +
      "If you trust the file, load it with PyTorch and save its state_dict() as safetensors.",
    { details: { file, asked } },
  );
}

class Unpickler {
  #at = 0;
  readonly #stack: unknown[] = [];
  readonly #memo = new Map<number, unknown>();
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;
  readonly #rules: PickleRules;

  constructor(bytes: Uint8Array, file: string, rules: PickleRules) {
    this.#bytes = bytes;
    this.#view = view_of(bytes);
    this.#file = file;
    this.#rules = rules;
  }

  run(): unknown {
    for (let ops = 0; ops < MAX_OPS; ops++) {
      const op = this.#bytes[this.#take(1)] as number;
      if (op === 0x2e) return this.#pop();
      this.#step(op);
      if (this.#stack.length > MAX_STACK) throw this.#broken(`stacks more than ${MAX_STACK} values`);
    }
    throw this.#broken(`has more than ${MAX_OPS} instructions`);
  }

  /** One instruction; those that only push a constant or read the memo are in `push_op`. */
  #step(op: number): void {
    switch (op) {
      case 0x80: // PROTO
        this.#check_protocol(this.#uint8());
        break;
      case 0x95: // FRAME
        this.#check_frame();
        break;
      case 0x30: // POP
        this.#stack.pop();
        break;
      case 0x31: // POP_MARK
        this.#pop_mark();
        break;
      case 0x71: // BINPUT
        this.#put(this.#uint8());
        break;
      case 0x72: // LONG_BINPUT
        this.#put(this.#uint32());
        break;
      case 0x94: // MEMOIZE
        this.#put(this.#memo.size);
        break;
      case 0x61: // APPEND
        this.#append([this.#pop()]);
        break;
      case 0x65: // APPENDS
        this.#append(this.#pop_mark());
        break;
      case 0x73: // SETITEM
        this.#set_items(this.#pop_many(2));
        break;
      case 0x75: // SETITEMS
        this.#set_items(this.#pop_mark());
        break;
      case 0x62: // BUILD
        this.#build(this.#pop());
        break;
      default:
        this.#stack.push(this.#push_op(op));
    }
  }

  #push_op(op: number): unknown {
    switch (op) {
      case 0x28: // MARK
        return MARK;
      case 0x32: // DUP
        return this.#top();
      case 0x4e: // NONE
        return null;
      case 0x88: // NEWTRUE
        return true;
      case 0x89: // NEWFALSE
        return false;
      case 0x5d: // EMPTY_LIST
        return [];
      case 0x7d: // EMPTY_DICT
        return new PickleDict();
      case 0x68: // BINGET
        return this.#get(this.#uint8());
      case 0x6a: // LONG_BINGET
        return this.#get(this.#uint32());
      case 0x52: // REDUCE
        return this.#reduce();
      case 0x51: // BINPERSID
        return this.#rules.persistent_load(this.#pop());
      case 0x63: // GLOBAL
        return this.#global(this.#line(), this.#line());
      case 0x93: // STACK_GLOBAL
        return this.#stack_global();
      default:
        return this.#tuple_op(op);
    }
  }

  #tuple_op(op: number): unknown {
    switch (op) {
      case 0x29: // EMPTY_TUPLE
        return new PickleTuple([]);
      case 0x85: // TUPLE1
        return new PickleTuple(this.#pop_many(1));
      case 0x86: // TUPLE2
        return new PickleTuple(this.#pop_many(2));
      case 0x87: // TUPLE3
        return new PickleTuple(this.#pop_many(3));
      case 0x74: // TUPLE
        return new PickleTuple(this.#pop_mark());
      default:
        return this.#scalar_op(op);
    }
  }

  #scalar_op(op: number): unknown {
    switch (op) {
      case 0x4b: // BININT1
        return this.#uint8();
      case 0x4d: // BININT2
        return this.#view.getUint16(this.#take(2), true);
      case 0x4a: // BININT
        return this.#view.getInt32(this.#take(4), true);
      case 0x8a: // LONG1
        return this.#long(this.#uint8());
      case 0x8b: // LONG4
        return this.#long(this.#uint32());
      case 0x47: // BINFLOAT
        return this.#view.getFloat64(this.#take(8), false);
      case 0x8c: // SHORT_BINUNICODE
        return this.#text(this.#uint8());
      case 0x58: // BINUNICODE
        return this.#text(this.#uint32());
      case 0x8d: // BINUNICODE8
        return this.#text(this.#uint64());
      default:
        throw this.#refuse_op(op);
    }
  }

  #refuse_op(op: number): VitMsnError {
    // INST is an older GLOBAL and REDUCE in one: report its name.
    if (op === 0x69) return refuse_pickle(this.#file, show_name(this.#line(), this.#line()));
    return refuse_pickle(this.#file, `the pickle instruction 0x${op.toString(16).padStart(2, "0")}`);
  }

  #check_protocol(protocol: number): void {
    if (protocol < 2 || protocol > 5)
      throw this.#broken(`is written in pickle protocol ${protocol}; 2 to 5 are supported`);
  }

  #check_frame(): void {
    const length = this.#uint64();
    if (length > this.#bytes.byteLength - this.#at)
      throw this.#broken(`claims a frame of ${length} bytes that extends past its end`);
  }

  #global(module: string, name: string): PickleGlobal {
    const full_name = `${module}.${name}`;
    if (!this.#rules.globals.has(full_name)) throw refuse_pickle(this.#file, show_name(module, name));
    return new PickleGlobal(full_name);
  }

  #stack_global(): PickleGlobal {
    const [module, name] = this.#pop_many(2);
    if (typeof module !== "string" || typeof name !== "string")
      throw this.#broken("names a global by something other than strings");
    return this.#global(module, name);
  }

  #reduce(): unknown {
    const [callee, args] = this.#pop_many(2);
    if (!(callee instanceof PickleGlobal) || !(args instanceof PickleTuple)) {
      throw refuse_pickle(this.#file, "a call of something that isn't a known function");
    }
    return this.#rules.reduce(callee, args.items);
  }

  /** A state dict has the attribute `_metadata`, which is dropped because no tensor needs it. */
  #build(_state: unknown): void {
    if (!(this.#top() instanceof PickleDict))
      throw refuse_pickle(this.#file, "attributes to be set on something other than a dict");
  }

  #append(items: unknown[]): void {
    const list = this.#top();
    if (!Array.isArray(list)) throw this.#broken("appends to something that isn't a list");
    for (const item of items) list.push(item);
  }

  #set_items(items: unknown[]): void {
    const dict = this.#top();
    if (!(dict instanceof PickleDict) || items.length % 2 !== 0)
      throw this.#broken("sets items of something that isn't a dict");
    for (let i = 0; i < items.length; i += 2) dict.set(items[i], items[i + 1]);
  }

  #put(index: number): void {
    if (index >= MAX_OPS) throw this.#broken(`uses memo index ${index}, more than ${MAX_OPS}`);
    this.#memo.set(index, this.#top());
  }

  #get(index: number): unknown {
    if (!this.#memo.has(index)) throw this.#broken(`reads memo index ${index}, which was never written`);
    return this.#memo.get(index);
  }

  #top(): unknown {
    const value = this.#stack.at(-1);
    if (value === undefined || value === MARK) throw this.#broken("uses a value that isn't there");
    return value;
  }

  #pop(): unknown {
    const value = this.#top();
    this.#stack.pop();
    return value;
  }

  #pop_many(count: number): unknown[] {
    const values = Array.from({ length: count }, () => this.#pop());
    return values.reverse();
  }

  #pop_mark(): unknown[] {
    const mark = this.#stack.lastIndexOf(MARK);
    if (mark < 0) throw this.#broken("closes a group that was never opened");
    const values = this.#stack.splice(mark + 1);
    this.#stack.pop();
    return values;
  }

  /** A little-endian two's complement integer: a number if it is safe, else a bigint. */
  #long(length: number): number | bigint {
    if (length > 8) throw this.#broken(`holds an integer of ${length} bytes`);
    const start = this.#take(length);
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[start + i] as number);
    const signed = BigInt.asIntN(length * 8, value);
    return Number.isSafeInteger(Number(signed)) ? Number(signed) : signed;
  }

  #text(length: number): string {
    const start = this.#take(length);
    const text = decode_utf8(this.#bytes.subarray(start, start + length));
    if (text === undefined) throw this.#broken("holds a string that isn't UTF-8");
    return text;
  }

  /** A name up to the end of the line. */
  #line(): string {
    const end = this.#bytes.subarray(this.#at, this.#at + MAX_NAME_BYTES + 1).indexOf(0x0a);
    if (end < 0) throw this.#broken("holds a name without an end");
    const text = this.#text(end);
    this.#at++;
    return text;
  }

  #uint8(): number {
    return this.#view.getUint8(this.#take(1));
  }

  #uint32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  #uint64(): number {
    return Number(this.#view.getBigUint64(this.#take(8), true));
  }

  /** Skips `length` bytes and returns their offset. */
  #take(length: number): number {
    if (length > this.#bytes.byteLength - this.#at)
      throw this.#broken(`ends early: ${length} bytes are needed at byte ${this.#at}`);
    const start = this.#at;
    this.#at += length;
    return start;
  }

  #broken(what: string): VitMsnError {
    return new VitMsnError("INVALID_CHECKPOINT", `The pickle in ${this.#file} ${what}.`, {
      details: { file: this.#file },
    });
  }
}

/** A name in Python's notation, shortened and without control characters. */
function show_name(module: string, name: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is removed here
  return `${module}.${name}`.slice(0, MAX_NAME_BYTES).replace(/[\u0000-\u001f\u007f]/g, "?");
}
