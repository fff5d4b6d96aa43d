/** How an edge worker's bundler imports a WebAssembly file. */
declare module "*.wasm" {
  const module: WebAssembly.Module;
  export default module;
}
