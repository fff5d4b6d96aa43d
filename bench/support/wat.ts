import binaryen from "binaryen";

/** The exports of a module in the text format, SIMD128 and relaxed SIMD allowed. */
export async function assemble<Exports extends WebAssembly.Exports>(text: string): Promise<Exports> {
  const module = binaryen.parseText(text);
  module.setFeatures(binaryen.Features.SIMD128 | binaryen.Features.RelaxedSIMD);
  const bytes = new Uint8Array(module.emitBinary());
  module.dispose();
  const { instance } = await WebAssembly.instantiate(bytes);
  return instance.exports as Exports;
}
