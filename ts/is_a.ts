/** Types of the language and the platform, by the names that Object.prototype.toString gives them. */
interface NamedTypes {
  ArrayBuffer: ArrayBuffer;
  Blob: Blob;
  DOMException: DOMException;
  Error: Error;
  File: File;
  Float32Array: Float32Array;
  Map: ReadonlyMap<string, unknown>;
  Response: Response;
  URL: URL;
  /** Node's Buffer is one, too. */
  Uint8Array: Uint8Array;
  Uint8ClampedArray: Uint8ClampedArray;
  "WebAssembly.Module": WebAssembly.Module;
}

/**
 * Whether a value has one of these types. Unlike `instanceof`, it recognises values of another realm, which Jest, vm pools, edge
 * runtimes and frames bring in, and doesn't touch Node's `Response`, whose first use reserves 10 GiB of address space.
 */
export function is_a<Name extends keyof NamedTypes>(
  value: unknown,
  ...names: readonly Name[]
): value is NamedTypes[Name] {
  return names.includes(type_name(value) as Name);
}

/** As in "Float32Array". */
export function type_name(value: unknown): string {
  return Object.prototype.toString.call(value).slice(8, -1);
}

export const is_error = (value: unknown): value is Error => is_a(value, "Error", "DOMException");
