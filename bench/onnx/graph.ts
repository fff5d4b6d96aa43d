import { type Chunk, float, integer, join, message } from "./protobuf.ts";

// Field numbers and type codes are those of onnx.proto3: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
const FLOAT = 1;
const INT64 = 7;
const ATTRIBUTE_FLOAT = 1;
const ATTRIBUTE_INT = 2;
const ATTRIBUTE_INTS = 7;
const IR_VERSION = 9;
const OPSET = 18;

/** Real numbers, integers and lists of integers; a real number is written `{ float }`. */
type Attribute = number | readonly number[] | { float: number };

/** An ONNX graph under construction: each call adds a node or a constant and gives the name of its output. */
export class Graph {
  readonly #nodes: Chunk[] = [];
  readonly #initializers: Chunk[] = [];
  #count = 0;

  /** Adds a node with one output. */
  node(
    op_type: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    output = `${op_type}_${this.#count++}`,
  ): string {
    this.#nodes.push(
      message(
        1,
        ...inputs.map((name) => message(1, name)),
        message(2, output),
        message(4, op_type),
        ...Object.entries(attributes).map(([name, value]) => message(5, message(1, name), attribute(value))),
      ),
    );
    return output;
  }

  /** Adds a float32 constant. */
  floats(data: Float32Array, dims: readonly number[]): string {
    return this.#constant(FLOAT, dims, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  /** Adds a list of integers, as a shape. */
  integers(values: readonly number[]): string {
    return this.#constant(
      INT64,
      [values.length],
      new Uint8Array(BigInt64Array.from(values.map(BigInt)).buffer),
    );
  }

  /** The whole model; a dimension that is text is free. */
  model(input: Value, output: Value): Uint8Array<ArrayBuffer> {
    const graph = message(
      7,
      this.#nodes,
      message(2, "vit_msn"),
      this.#initializers,
      message(11, value_info(input)),
      message(12, value_info(output)),
    );
    return join([integer(1, IR_VERSION), graph, message(8, integer(2, OPSET))]);
  }

  #constant(type: number, dims: readonly number[], raw: Uint8Array): string {
    const name = `constant_${this.#count++}`;
    this.#initializers.push(
      message(
        5,
        dims.map((size) => integer(1, size)),
        integer(2, type),
        message(8, name),
        message(9, raw),
      ),
    );
    return name;
  }
}

/** A float32 input or output. */
export interface Value {
  name: string;
  dims: readonly (number | string)[];
}

function value_info({ name, dims }: Value): Chunk {
  const shape = dims.map((size) =>
    message(1, typeof size === "string" ? message(2, size) : integer(1, size)),
  );
  return [message(1, name), message(2, message(1, integer(1, FLOAT), message(2, shape)))];
}

function attribute(value: Attribute): Chunk {
  if (typeof value === "number") return [integer(3, value), integer(20, ATTRIBUTE_INT)];
  if ("float" in value) return [float(2, value.float), integer(20, ATTRIBUTE_FLOAT)];
  return [value.map((item) => integer(8, item)), integer(20, ATTRIBUTE_INTS)];
}
