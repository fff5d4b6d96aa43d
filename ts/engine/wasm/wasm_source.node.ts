import { readFile } from "node:fs/promises";
import { VitMsnError } from "../../errors.ts";
import type { Level } from "../engine_info.ts";

/** The engine's WebAssembly for a level, from next to this file. */
export async function default_wasm(level: Level | "webgpu"): Promise<BufferSource> {
  const url = new URL(`./vit_msn_${level.replace("+", "_")}.wasm`, import.meta.url);
  try {
    return await readFile(url);
  } catch (cause) {
    throw new VitMsnError("IO", `The engine's WebAssembly can't be read at ${url.href}; reinstall vit-msn.`, {
      cause,
    });
  }
}
