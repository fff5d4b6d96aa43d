import type { Level } from "../engine_info.ts";

/** The URL of the engine's WebAssembly for a level: next to this file, in the form that bundlers recognise. */
export async function default_wasm(level: Level | "webgpu"): Promise<URL> {
  switch (level) {
    case "simd128":
      return new URL("./vit_msn_simd128.wasm", import.meta.url);
    case "relaxed":
      return new URL("./vit_msn_relaxed.wasm", import.meta.url);
    case "simd128+threads":
      return new URL("./vit_msn_simd128_threads.wasm", import.meta.url);
    case "webgpu":
      return new URL("./vit_msn_webgpu.wasm", import.meta.url);
    default: // relaxed+threads; the wide engine isn't chosen here (wide.web.ts)
      return new URL("./vit_msn_relaxed_threads.wasm", import.meta.url);
  }
}
