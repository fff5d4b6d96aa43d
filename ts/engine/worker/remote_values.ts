import { is_a, type_name } from "../../is_a.ts";
import { bytes_of } from "../../options.ts";

/**
 * Values in messages. Typed arrays are sent as their buffers, which are transferred rather than copied, and their type
 * as a separate field: Deno's node:worker_threads takes half a second to post a view of 4 MB, but no time for its
 * buffer.
 */

const VIEWS = { Float32Array, Int32Array, Uint32Array, Uint8Array };
type View = Float32Array | Int32Array | Uint32Array | Uint8Array;

interface Packed {
  view: keyof typeof VIEWS;
  buffer: ArrayBuffer;
}

/**
 * The form of a value in a message.
 * @param buffers receives the buffers to transfer.
 * @param is_ours whether views may be detached; otherwise they are copied first.
 */
export function pack(value: unknown, buffers: ArrayBuffer[], is_ours: boolean): unknown {
  if (ArrayBuffer.isView(value)) {
    const buffer = is_ours && is_whole(value) ? value.buffer : copy_of(value);
    buffers.push(buffer);
    return { view: type_name(value), buffer };
  }
  return is_record(value) ? map_values(value, (field) => pack(field, buffers, is_ours)) : value;
}

/** The inverse of pack. */
export function unpack(value: unknown): unknown {
  if (!is_record(value)) return value;
  const { view, buffer } = value as Partial<Packed>;
  return view === undefined ? map_values(value, unpack) : new VIEWS[view](buffer as ArrayBuffer);
}

export function map_values<T, U>(record: Record<string, T>, map: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(record).map(([key, value]) => [key, map(value)]));
}

function is_record(value: unknown): value is Record<string, unknown> {
  return type_name(value) === "Object"; // a message's objects are of Node's realm, which isn't Jest's
}

function is_whole(view: ArrayBufferView): view is View & { buffer: ArrayBuffer } {
  return is_a(view.buffer, "ArrayBuffer") && view.byteLength === view.buffer.byteLength;
}

function copy_of(view: ArrayBufferView): ArrayBuffer {
  return new Uint8Array(bytes_of(view, "A tensor")).buffer;
}
