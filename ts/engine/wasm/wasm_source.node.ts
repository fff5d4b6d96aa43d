import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { VitMsnError } from "../../errors.ts";
import { is_error } from "../../is_a.ts";
import type { Level } from "../engine_info.ts";

/** The engine's WebAssembly for a level, from next to this file. */
export async function default_wasm(level: Level | "webgpu"): Promise<BufferSource> {
  const file = `vit_msn_${level.replaceAll(/[-+]/g, "_")}.wasm`;
  try {
    // Some bundlers replace import.meta.url by nothing, and URL by their own.
    return await readFile(fileURLToPath(String(new URL(`./${file}`, import.meta.url))));
  } catch (cause) {
    throw new VitMsnError(
      "IO",
      `The engine's file ${file} isn't next to vit-msn's JavaScript. In a bundled server, keep vit-msn outside of the bundle ` +
        `(esbuild: --external:vit-msn; Next.js: serverExternalPackages: ["vit-msn"]), or set env.wasm to the file's bytes; ` +
        `otherwise reinstall vit-msn. ${is_error(cause) ? cause.message : cause}`,
      { cause },
    );
  }
}
