/** Where the engine's WebAssembly lies: beside this file, in the form that bundlers recognise. */
export async function default_wasm(): Promise<URL> {
  return new URL("./vit_msn_simd128.wasm", import.meta.url);
}
