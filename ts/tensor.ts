import { numel } from "./dims.ts";
import { invalid_argument as invalid, show } from "./errors.ts";
import { type_name } from "./is_a.ts";

/** Element types of a Tensor and the array that holds each. */
export interface TensorData {
  float32: Float32Array;
  int32: Int32Array;
  int64: BigInt64Array;
  uint8: Uint8Array;
  bool: Uint8Array;
}
export type TensorType = keyof TensorData;

const ARRAYS = {
  float32: Float32Array,
  int32: Int32Array,
  int64: BigInt64Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const;

/** Which numbers of a plain array an element type represents exactly. */
const FITS: Readonly<Record<TensorType, (x: unknown) => boolean>> = {
  float32: (x) => typeof x === "number",
  int32: (x) => typeof x === "number" && (x | 0) === x,
  int64: (x) => typeof x === "bigint" || Number.isSafeInteger(x),
  uint8: (x) => typeof x === "number" && (x & 255) === x,
  bool: (x) => x === 0 || x === 1 || typeof x === "boolean",
};

/**
 * A row-major array of numbers with a shape: a model's inputs and outputs.
 *
 * The data is in JavaScript memory, so a tensor outlives its model and needs no dispose(), which does nothing; a
 * DeviceTensor is the exception. `data` is available at once; `getData()` also works for a DeviceTensor.
 */
export class Tensor<T extends TensorType = TensorType> {
  /** A literal, since minifiers rename classes. */
  static readonly name: string = "Tensor";
  readonly type: T;
  readonly dims: readonly number[];
  readonly data: TensorData[T];

  /**
   * @param type element type.
   * @param data the elements: the type's array (not copied), or an array of numbers (copied).
   * @param dims the shape; its product must be data.length.
   * @throws VitMsnError INVALID_ARGUMENT if type, data and dims don't fit each other.
   */
  constructor(type: T, data: TensorData[T] | readonly number[], dims: readonly number[]) {
    if (typeof type !== "string" || !Object.hasOwn(ARRAYS, type)) {
      throw invalid(`Tensor type ${show(type)} is unknown; use one of ${Object.keys(ARRAYS).join(", ")}.`);
    }
    const ArrayOfType = ARRAYS[type];
    const size = checked_size(dims);
    const array = Array.isArray(data) ? from_numbers(type, data) : (data as TensorData[T]);
    if (type_name(array) !== ArrayOfType.name) {
      throw invalid(
        `Tensor of type "${type}" takes a ${ArrayOfType.name} or an array of numbers, got ${ArrayBuffer.isView(data) ? type_name(data) : show(data)}.`,
      );
    }
    if (array.length !== size) {
      throw invalid(
        `Tensor of shape [${dims.join(", ")}] has ${size} elements, but data has ${array.length}.`,
      );
    }
    this.type = type;
    this.data = array as TensorData[T];
    this.dims = [...dims];
  }

  /** Number of elements. */
  get size(): number {
    return this.data.length;
  }

  /** Where the elements are: in JavaScript memory, or on a GPU. */
  get location(): "cpu" | "webgpu" {
    return "cpu";
  }

  /** Frees memory outside JavaScript's. */
  dispose(): void {}

  /** The elements in row-major order (the tensor's array, not a copy). */
  async getData(): Promise<TensorData[T]> {
    return this.data;
  }

  /** The same elements under another shape of equal size; shares the data. */
  reshape(...dims: number[]): Tensor<T> {
    return new Tensor(this.type, this.data, dims);
  }

  /** The elements as nested arrays of JavaScript numbers, one level for each dimension. */
  tolist(): NestedNumbers {
    return nest(numbers_of(this), this.dims, 0);
  }
}

/** Joins tensors of equal trailing shape along the first dimension. @throws VitMsnError INVALID_ARGUMENT for none. */
export function concatenate(parts: readonly Tensor<"float32">[]): Tensor<"float32"> {
  const [first] = parts;
  if (first === undefined) throw invalid("There is nothing to join: the list is empty.");
  if (parts.length === 1) return first;
  const data = new Float32Array(parts.reduce((sum, part) => sum + part.size, 0));
  let offset = 0;
  for (const part of parts) {
    data.set(part.data, offset);
    offset += part.size;
  }
  const batch = parts.reduce((sum, part) => sum + (part.dims[0] as number), 0);
  return new Tensor("float32", data, [batch, ...first.dims.slice(1)]);
}

/** A tensor's elements as JavaScript numbers, whatever its type. */
export function numbers_of(tensor: Tensor): number[] {
  check_elements(tensor, "The tensor");
  return Array.from(tensor.data as ArrayLike<number | bigint>, Number);
}

/**
 * Refuses a tensor whose memory was transferred, for example by postMessage, or resized since it was created.
 * @throws VitMsnError INVALID_ARGUMENT.
 */
export function check_elements(tensor: Tensor, what: string): void {
  if (tensor.location !== "cpu") return; // `data` of a tensor on a GPU throws
  const { data, dims } = tensor;
  const size = numel(dims);
  if (data.length === size) return;
  throw invalid(
    `${what} has ${size} elements, but its memory holds ${data.length}: it was transferred or resized.`,
  );
}

export type NestedNumbers = number | NestedNumbers[];

function nest(values: number[], dims: readonly number[], offset: number): NestedNumbers {
  const [rows, ...rest] = dims;
  if (rows === undefined) return values[offset] as number;
  const stride = numel(rest);
  return Array.from({ length: rows }, (_, i) => nest(values, rest, offset + i * stride));
}

function checked_size(dims: readonly number[]): number {
  if (!Array.isArray(dims) || dims.some((d) => !Number.isSafeInteger(d) || d < 0)) {
    throw invalid(`Tensor dims must be non-negative integers, got ${show(dims)}.`);
  }
  return numel(dims);
}

function from_numbers<T extends TensorType>(type: T, data: readonly number[]): TensorData[T] {
  const wrong = data.findIndex((x) => !FITS[type](x));
  if (wrong >= 0)
    throw invalid(`Tensor of type "${type}" can't hold ${show(data[wrong])}, at index ${wrong}.`);
  if (type === "int64") return BigInt64Array.from(data.map((x) => BigInt(x))) as TensorData[T];
  return (ARRAYS[type] as Float32ArrayConstructor).from(data) as TensorData[T];
}
