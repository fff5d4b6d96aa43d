import { crc32 } from "#crc32";
import { numel } from "../../dims.ts";
import { VitMsnError } from "../../errors.ts";

/** A tensor to write; its data is read when its turn comes. */
export class TorchTensor {
  readonly type: "float32" | "int64";
  readonly dims: readonly number[];
  readonly read: () => Uint8Array | Promise<Uint8Array>;

  /** @param read the little-endian elements in row-major order. */
  constructor(type: "float32" | "int64", dims: readonly number[], read: TorchTensor["read"]) {
    this.type = type;
    this.dims = dims;
    this.read = read;
  }

  get byte_length(): number {
    return numel(this.dims) * (this.type === "float32" ? 4 : 8);
  }
}

/** A float, which Python must not take for an int. */
export class PythonFloat {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}

/** What a pickle of torch.save may hold: numbers are ints, arrays lists, and Maps dicts. */
export type TorchValue =
  | string
  | number
  | boolean
  | null
  | PythonFloat
  | TorchTensor
  | readonly TorchValue[]
  | ReadonlyMap<string | number, TorchValue>;

const STORAGES = { float32: "FloatStorage", int64: "LongStorage" } as const;
const FOLDER = "archive";
/** The largest size that a zip file without 64-bit fields may have. */
const MAX_ZIP_BYTES = 2 ** 32 - 1;

/**
 * Writes a file as torch.save does (since PyTorch 1.6), which torch.load reads, also with weights_only: an uncompressed
 * zip file with a pickle and a member for each tensor.
 * @throws VitMsnError UNSUPPORTED from 4 GiB on.
 */
export async function* write_torch_file(root: TorchValue): AsyncGenerator<Uint8Array, void, undefined> {
  const pickler = new Pickler();
  const pickle = pickler.pickle(root);
  const zip = new ZipWriter();
  const text = (value: string) => new TextEncoder().encode(value);
  yield* zip.add("data.pkl", pickle);
  yield* zip.add("byteorder", text("little"));
  for (const [i, tensor] of pickler.tensors.entries()) yield* zip.add(`data/${i}`, await tensor.read());
  yield* zip.add("version", text("3\n"));
  yield zip.directory();
}

/** Protocol 2. Instructions: CPython's Lib/pickletools.py. */
class Pickler {
  readonly tensors: TorchTensor[] = [];
  #bytes: number[] = [];

  pickle(value: TorchValue): Uint8Array {
    this.#op("\x80\x02");
    this.#value(value);
    this.#op(".");
    return Uint8Array.from(this.#bytes);
  }

  #value(value: TorchValue): void {
    if (value === null) this.#op("N");
    else if (typeof value === "string") this.#text(value);
    else if (typeof value === "boolean") this.#op(value ? "\x88" : "\x89");
    else if (typeof value === "number") this.#int(value);
    else if (value instanceof PythonFloat) this.#float(value.value);
    else if (value instanceof TorchTensor) this.#tensor(value);
    else if (value instanceof Map) {
      this.#op("}(");
      for (const [key, item] of value as ReadonlyMap<string | number, TorchValue>) {
        this.#value(key);
        this.#value(item);
      }
      this.#op("u");
    } else {
      this.#op("](");
      for (const item of value as readonly TorchValue[]) this.#value(item);
      this.#op("e");
    }
  }

  /** torch._utils._rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()). */
  #tensor(tensor: TorchTensor): void {
    const { dims, type } = tensor;
    const strides = dims.map((_, i) => numel(dims.slice(i + 1)));
    this.#op("ctorch._utils\n_rebuild_tensor_v2\n((");
    this.#text("storage");
    this.#op(`ctorch\n${STORAGES[type]}\n`);
    this.#text(String(this.tensors.length));
    this.#text("cpu");
    this.#int(numel(dims));
    this.#op("tQ");
    this.#int(0);
    this.#tuple(dims);
    this.#tuple(strides);
    this.#op("\x89ccollections\nOrderedDict\n)RtR");
    this.tensors.push(tensor);
  }

  #tuple(values: readonly number[]): void {
    this.#op("(");
    for (const value of values) this.#int(value);
    this.#op("t");
  }

  #int(value: number): void {
    const bytes = new DataView(new ArrayBuffer(8));
    if (value === (value | 0)) {
      bytes.setInt32(0, value, true);
      this.#op("J");
      this.#push(bytes, 4);
    } else {
      bytes.setBigInt64(0, BigInt(value), true);
      this.#op("\x8a\x08");
      this.#push(bytes, 8);
    }
  }

  #float(value: number): void {
    const bytes = new DataView(new ArrayBuffer(8));
    bytes.setFloat64(0, value, false);
    this.#op("G");
    this.#push(bytes, 8);
  }

  #text(value: string): void {
    const encoded = new TextEncoder().encode(value);
    const length = new DataView(new ArrayBuffer(4));
    length.setUint32(0, encoded.length, true);
    this.#op("X");
    this.#push(length, 4);
    this.#bytes.push(...encoded);
  }

  /** Each character is a byte. */
  #op(code: string): void {
    for (const char of code) this.#bytes.push(char.charCodeAt(0));
  }

  #push({ buffer }: DataView, length: number): void {
    this.#bytes.push(...new Uint8Array(buffer, 0, length));
  }
}

interface Member {
  name: Uint8Array;
  crc32: number;
  size: number;
  offset: number;
}

/** Stored members, without compression. */
class ZipWriter {
  readonly #members: Member[] = [];
  #offset = 0;

  *add(path: string, data: Uint8Array): Generator<Uint8Array> {
    const member = {
      name: new TextEncoder().encode(`${FOLDER}/${path}`),
      crc32: crc32(data),
      size: data.length,
      offset: this.#offset,
    };
    const header = join(fields(4, 0x04034b50), this.#common(member), member.name);
    this.#offset += header.length + data.length;
    if (this.#offset > MAX_ZIP_BYTES) {
      throw new VitMsnError(
        "UNSUPPORTED",
        "A checkpoint of 4 GiB or more can't be written as a torch.save file.",
      );
    }
    this.#members.push(member);
    yield header;
    yield data;
  }

  directory(): Uint8Array {
    const entries = this.#members.map((member) =>
      join(
        fields(4, 0x02014b50),
        fields(2, 0),
        this.#common(member),
        // Comment, disk, internal and external attributes.
        fields(2, 0, 0, 0),
        fields(4, 0, member.offset),
        member.name,
      ),
    );
    const directory = join(...entries);
    const count = entries.length;
    const end = join(
      fields(4, 0x06054b50),
      fields(2, 0, 0, count, count),
      fields(4, directory.length, this.#offset),
      fields(2, 0),
    );
    return join(directory, end);
  }

  /** Version, flags, method, time and date (1980-01-01), CRC-32, both sizes, the lengths of name and extra field. */
  #common({ name, crc32, size }: Member): Uint8Array {
    return join(fields(2, 20, 0, 0, 0, 0x21), fields(4, crc32, size, size), fields(2, name.length, 0));
  }
}

/** Little-endian integers of `width` bytes. */
function fields(width: 2 | 4, ...values: readonly number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(width * values.length));
  for (const [i, value] of values.entries()) {
    if (width === 2) view.setUint16(2 * i, value, true);
    else view.setUint32(4 * i, value, true);
  }
  return new Uint8Array(view.buffer);
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
