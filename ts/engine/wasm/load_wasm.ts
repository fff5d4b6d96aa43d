import { default_wasm } from "#wasm";
import { VitMsnError } from "../../errors.ts";
import { is_a } from "../../is_a.ts";
import { bytes_of } from "../../options.ts";
import type { Level } from "../engine_info.ts";

export type WasmInput = WebAssembly.Module | BufferSource | URL | Response;

/** The package's modules, each compiled once for all models. */
const compiled = new Map<Level | "webgpu", Promise<WebAssembly.Module>>();
/** Modules from a Response, which can be read only once: for models that are loaded later. */
const received = new WeakMap<Response, Promise<WebAssembly.Module>>();

/**
 * The engine's WebAssembly module: the caller's, or the level's file next to the package's JavaScript.
 * @throws VitMsnError IO if it can't be read, UNSUPPORTED if this runtime can't compile it.
 */
export async function load_wasm_module(
  given: WasmInput | undefined,
  level: Level | "webgpu" = "simd128",
): Promise<WebAssembly.Module> {
  if (is_a(given, "Response")) return compile_received(given);
  if (given !== undefined) return compile(given);
  const module = compiled.get(level) ?? (default_wasm(level) as Promise<WasmInput>).then(compile);
  compiled.set(level, module);
  try {
    return await module;
  } catch (error) {
    compiled.delete(level); // the next call tries again
    throw error;
  }
}

/** Whether a binary is the WebGPU engine: only that exports a function to open a device. */
export function is_for_webgpu(module: WebAssembly.Module): boolean {
  return WebAssembly.Module.exports(module).some(({ name }) => name === "open");
}

function compile_received(response: Response): Promise<WebAssembly.Module> {
  const module = received.get(response) ?? compile(response);
  received.set(response, module);
  return module;
}

async function compile(input: WasmInput): Promise<WebAssembly.Module> {
  if (is_a(input, "WebAssembly.Module")) return input;
  // TypeScript can't rule out Module by itself: it is an empty interface, which everything fits.
  const bytes = await read(input as BufferSource | URL | Response);
  try {
    return await WebAssembly.compile(bytes);
  } catch (cause) {
    throw compile_error(bytes, cause);
  }
}

async function read(input: BufferSource | URL | Response): Promise<BufferSource> {
  if (is_a(input, "URL")) return read(await fetch_wasm(input));
  if (!is_a(input, "Response"))
    return bytes_of(input as BufferSource, "The engine's WebAssembly") as BufferSource;
  if (!input.ok) {
    throw new VitMsnError(
      "IO",
      `The engine's WebAssembly can't be loaded: ${input.url} answered ${input.status}.`,
    );
  }
  return input.arrayBuffer();
}

async function fetch_wasm(url: URL): Promise<Response> {
  try {
    return await fetch(url);
  } catch (cause) {
    throw new VitMsnError("IO", `The engine's WebAssembly can't be loaded from ${url.href}.`, { cause });
  }
}

function compile_error(bytes: BufferSource, cause: unknown): VitMsnError {
  const view = bytes_of(bytes, "The engine's WebAssembly");
  const is_wasm = view[0] === 0 && view[1] === 0x61 && view[2] === 0x73 && view[3] === 0x6d; // "\0asm"
  if (!is_wasm) {
    const start = new TextDecoder().decode(view.subarray(0, 16));
    return new VitMsnError(
      "IO",
      `The engine's WebAssembly file isn't WebAssembly: it starts with ${JSON.stringify(start)}. ` +
        "A server that answers unknown paths with a page gives this; serve the package's .wasm files, or set env.wasm.",
      { cause },
    );
  }
  return new VitMsnError(
    "UNSUPPORTED",
    "This runtime can't compile the engine: it needs WebAssembly with fixed-width SIMD (Node 16.4, Chrome 91, " +
      `Firefox 89, Safari 16.4 or newer) and a policy that allows it ("wasm-unsafe-eval"). ${String(cause)}`,
    { cause },
  );
}
