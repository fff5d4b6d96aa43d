/**
 * The little of Protocol Buffers' wire format that writing an ONNX model takes.
 * https://protobuf.dev/programming-guides/encoding
 */
export type Chunk = Uint8Array | readonly Chunk[];

/** A field that holds an integer. */
export function integer(field: number, value: number): Chunk {
  return [varint(field << 3), varint(value)];
}

/** A field that holds a 32-bit float. */
export function float(field: number, value: number): Chunk {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setFloat32(0, value, true);
  return [varint((field << 3) | 5), bytes];
}

/** A field that holds text, bytes or another message. */
export function message(field: number, ...content: readonly (Chunk | string)[]): Chunk {
  const chunks = content.map((item) => (typeof item === "string" ? new TextEncoder().encode(item) : item));
  return [varint((field << 3) | 2), varint(byte_length(chunks)), ...chunks];
}

/** All chunks in one array. */
export function join(chunk: Chunk): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(byte_length(chunk));
  copy(chunk, out, 0);
  return out;
}

function copy(chunk: Chunk, out: Uint8Array, offset: number): number {
  if (chunk instanceof Uint8Array) {
    out.set(chunk, offset);
    return offset + chunk.length;
  }
  return chunk.reduce((at, part) => copy(part, out, at), offset);
}

function byte_length(chunk: Chunk): number {
  if (chunk instanceof Uint8Array) return chunk.length;
  return chunk.reduce((total, part) => total + byte_length(part), 0);
}

/** Seven bits a byte, lowest first; a negative number as its 64-bit two's complement. */
function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest >= 128n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return Uint8Array.from([...bytes, Number(rest)]);
}
