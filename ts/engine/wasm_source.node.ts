import { readFile } from "node:fs/promises";
import { VitMsnError } from "../errors.ts";

/** The engine's WebAssembly beside this file. */
export async function default_wasm(): Promise<BufferSource> {
  const url = new URL("./vit_msn_simd128.wasm", import.meta.url);
  try {
    return await readFile(url);
  } catch (cause) {
    throw new VitMsnError("IO", `The engine's WebAssembly can't be read at ${url.href}; reinstall vit-msn.`, {
      cause,
    });
  }
}
